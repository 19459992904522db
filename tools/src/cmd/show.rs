//! `oslet show`: one OSlet in detail.

use std::process::ExitCode;

use clap::Args;
use oslet::config::show_size;

use super::ls::{LAUNCHER_ENDED, gather, not_here, not_running};
use crate::args::Global;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  oslet show o0             the OSlet o0 in detail
  oslet show o0 --json      the same, for programs

Exit status: 1 if no such OSlet or cluster runs.";

/// Show one OSlet in detail
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ShowArgs {
    /// The OSlet
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: ShowArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let directory = global.running();
    let Some((rows, mut answers)) = gather(&directory, true)? else {
        return not_running(&directory, args.json.then_some(serde_json::Value::Null));
    };
    let Some(index) = rows.iter().position(|row| row.name == args.name) else {
        let known: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        return not_here(&args.name, &known, args.json.then_some(serde_json::Value::Null));
    };
    let details = answers.get_mut(index).and_then(Option::take).map(|status| status.details);
    let details = details.unwrap_or_default();
    let mut value = serde_json::to_value(&rows[index])?;
    if args.json {
        let list: Vec<_> = details
            .iter()
            .map(|line| serde_json::json!({ "name": line.name, "value": line.value }))
            .collect();
        value["details"] = list.into();
        output::json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = Vec::new();
    if let Some(fields) = value.as_object() {
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let bytes = value.as_u64().filter(|_| name.starts_with("memory_"));
            let text = match bytes {
                Some(bytes) => show_size(bytes),
                None => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            };
            lines.push(vec![name.replace('_', " "), text]);
        }
    }
    if rows[index].launcher.is_none() {
        lines.push(vec!["launcher".into(), LAUNCHER_ENDED.into()]);
    }
    lines.extend(details.into_iter().map(|line| vec![line.name, line.value]));
    let log = directory.join(&args.name).join("log");
    lines.push(vec!["log".into(), log.display().to_string()]);
    output::text(&output::table(&["WHAT", "VALUE"], &lines))?;
    Ok(ExitCode::SUCCESS)
}
