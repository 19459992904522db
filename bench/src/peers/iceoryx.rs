//! iceoryx2: two polled publish/subscribe pairs in shared memory, one each way.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use iceoryx2::config::Config;
use iceoryx2::node::Node;
use iceoryx2::port::{publisher::Publisher, subscriber::Subscriber};
use iceoryx2::prelude::{
    LogLevel, NodeBuilder, Path as IceoryxPath, SemanticString as _, SignalHandlingMode, ipc,
    set_log_level,
};

use crate::Scratch;
use crate::case::Side;
use crate::machine::Cpus;

use super::ONE_CPU;
use super::partner::{PATIENCE, Partner, Spun, spin};

/// 64 bytes, as a descriptor of our rings.
type Message = [u64; 8];

/// One participant's end of both services.
struct End {
    publisher: Publisher<ipc::Service, Message, ()>,
    subscriber: Subscriber<ipc::Service, Message, ()>,
    /// Holds both services open.
    _node: Node<ipc::Service>,
}

/// The asker's side. Fields drop in order: the partner must be gone before the services are.
struct Asker {
    partner: Partner,
    end: End,
    number: u64,
}

/// Round trips of a 64-byte message by polled publish/subscribe.
///
/// # Errors
/// The services cannot be made.
pub fn iceoryx2(cpus: Cpus, scratch: &Scratch) -> anyhow::Result<Side> {
    let Some(second) = cpus.second else { return Ok(Side::absent(ONE_CPU)) };
    // What it says on stdout would be in the middle of our JSON.
    set_log_level(LogLevel::Fatal);
    let mut config = Config::default();
    let root = scratch.dir("iceoryx2")?;
    let root = root.to_str().context("the scratch directory's name is not UTF-8")?;
    let root = IceoryxPath::new(root.as_bytes()).map_err(|error| failed("root path", &error))?;
    config.global.set_root_path(&root);
    let end = End::new(&config, "question", "answer")?;

    let (ready, started) = mpsc::channel();
    let partner = Partner::start(second, move |stop| {
        let end = End::new(&config, "answer", "question")?;
        ready.send(()).context("the asker is gone")?;
        loop {
            let mut message = None;
            let seen = || {
                message = end.receive()?;
                Ok(message.is_some())
            };
            if spin(Some(stop), seen)? == Spun::Stopped {
                return Ok(());
            }
            let mut message = message.unwrap_or_default();
            message[0] = message[0].wrapping_add(1);
            end.send(message)?;
        }
    })?;
    let mut asker = Asker { partner, end, number: 0 };
    if started.recv_timeout(PATIENCE).is_err() {
        asker.partner.check()?;
        anyhow::bail!("the partner did not start within {} s", PATIENCE.as_secs());
    }
    Ok(Side::batch(move |operations| asker.ask(operations)))
}

impl Asker {
    fn ask(&mut self, operations: u64) -> anyhow::Result<Duration> {
        self.partner.check()?;
        let started = Instant::now();
        for _ in 0..operations {
            self.end.send([self.number, 0, 0, 0, 0, 0, 0, 0])?;
            let mut answer = None;
            spin(None, || {
                answer = self.end.receive()?;
                Ok(answer.is_some())
            })?;
            let answer = answer.unwrap_or_default()[0];
            ensure!(answer == self.number + 1, "{} was answered by {answer}", self.number);
            self.number = answer;
        }
        Ok(started.elapsed())
    }
}

impl End {
    fn new(config: &Config, publishes: &str, subscribes: &str) -> anyhow::Result<Self> {
        let node = NodeBuilder::new()
            .config(config)
            .signal_handling_mode(SignalHandlingMode::Disabled)
            .create::<ipc::Service>()
            .map_err(|error| failed("node", &error))?;
        // Root path and process id keep two runs apart.
        let service = |name: &str| {
            let name = format!("oslet-bench/{}/{name}", std::process::id());
            let name = name.as_str().try_into().map_err(|error| failed("name", &error))?;
            node.service_builder(&name)
                .publish_subscribe::<Message>()
                .open_or_create()
                .map_err(|error| failed("service", &error))
        };
        let publisher = service(publishes)?.publisher_builder().create();
        let subscriber = service(subscribes)?.subscriber_builder().create();
        Ok(Self {
            publisher: publisher.map_err(|error| failed("publisher", &error))?,
            subscriber: subscriber.map_err(|error| failed("subscriber", &error))?,
            _node: node,
        })
    }

    #[inline]
    fn send(&self, message: Message) -> anyhow::Result<()> {
        let sample = self.publisher.loan_uninit().map_err(|error| failed("loan", &error))?;
        sample.write_payload(message).send().map_err(|error| failed("send", &error))?;
        Ok(())
    }

    #[inline]
    fn receive(&self) -> anyhow::Result<Option<Message>> {
        let sample = self.subscriber.receive().map_err(|error| failed("receive", &error))?;
        Ok(sample.map(|sample| *sample))
    }
}

fn failed(what: &str, error: &dyn std::fmt::Debug) -> anyhow::Error {
    anyhow!("iceoryx2: {what}: {error:?}")
}
