//! Users by name, from /etc/passwd and /etc/group (passwd(5), group(5)): the files that the OSlets
//! see too.

use std::fs;

use anyhow::{Context, Result, bail};
use oslet::container::enter::User;

/// A user to become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// The name, or the number where there is no name.
    pub(crate) name: String,
    /// The home directory.
    pub(crate) home: String,
    /// Numbers.
    pub(crate) ids: User,
}

/// The user that is given as `USER` or `USER:GROUP`, each a name or a number.
///
/// # Errors
/// When a name is not known.
pub(crate) fn find(given: &str) -> Result<Found> {
    let read = |path: &str| {
        let text = fs::read(path).with_context(|| format!("{path}: read"))?;
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    find_in(given, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn find_in(given: &str, passwd: &str, group: &str) -> Result<Found> {
    let (user, wanted) = given.split_once(':').map_or((given, None), |(u, g)| (u, Some(g)));
    let line = rows(passwd).find(|row| {
        let matches = |at: usize| row.get(at).is_some_and(|field| *field == user);
        row.len() >= 7 && (matches(0) || matches(2))
    });
    let (name, uid, gid, home) = match &line {
        Some(row) => (row[0], number(row[2])?, number(row[3])?, row[5]),
        None => match user.parse() {
            // As elsewhere: a number without a name has its own group and no home.
            Ok(uid) => (user, uid, uid, "/"),
            Err(_) => bail!("user {user:?}: not in /etc/passwd"),
        },
    };
    let member = |row: &Vec<&str>| row.get(3).is_some_and(|of| of.split(',').any(|m| m == name));
    let (gid, groups) = match wanted {
        None => {
            let more = rows(group).filter(member).filter_map(|row| row.get(2)?.parse().ok());
            let mut groups: Vec<u32> = more.chain([gid]).collect();
            groups.sort_unstable();
            groups.dedup();
            (gid, groups)
        }
        Some(wanted) => {
            let row = rows(group).find(|row| row.len() >= 3 && row[0] == wanted);
            let gid = match row {
                Some(row) => number(row[2])?,
                None => wanted
                    .parse()
                    .with_context(|| format!("group {wanted:?}: not in /etc/group"))?,
            };
            (gid, vec![gid])
        }
    };
    Ok(Found {
        name: name.to_owned(),
        home: home.to_owned(),
        ids: User { uid, gid, groups: Some(groups) },
    })
}

/// The name of a user for a listing, or the number.
pub(crate) fn name(uid: u32) -> String {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    let number = uid.to_string();
    let mut rows = rows(&passwd);
    let row = rows.find(|row| row.get(2).is_some_and(|field| *field == number));
    row.map_or(number.clone(), |row| row[0].to_owned())
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn number(field: &str) -> Result<u32> {
    field.parse().with_context(|| format!("{field:?} in /etc/passwd or /etc/group: no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\nann:x:7:8::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:8:\ndisk:x:6:bob,ann\nshort\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let ann = find_in("ann", PASSWD, GROUP).unwrap();
        let ids = User { uid: 7, gid: 8, groups: Some(vec![6, 8]) };
        assert_eq!(ann, Found { name: "ann".into(), home: "/home/ann".into(), ids });
        assert_eq!(find_in("7", PASSWD, GROUP).unwrap(), ann);
        let other = find_in("1234:disk", PASSWD, GROUP).unwrap();
        assert_eq!(other.ids, User { uid: 1234, gid: 6, groups: Some(vec![6]) });
        assert_eq!(other.home, "/");
        assert_eq!(find_in("ann:99", PASSWD, GROUP).unwrap().ids.gid, 99);
        let error = find_in("eve", PASSWD, GROUP).unwrap_err().to_string();
        assert_eq!(error, "user \"eve\": not in /etc/passwd");
        assert!(find_in("ann:eves", PASSWD, GROUP).is_err());
    }
}
