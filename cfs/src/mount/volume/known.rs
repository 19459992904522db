//! Inodes that the kernel knows, which must stay while it does, whatever happens to their names.
//!
//! They are held at one incarnation of the volume's owner. With it the holds go, and a number that
//! was held may become another inode's: before a node is used at the next incarnation it is held
//! there, as the inode of its generation, or not used any more.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::shown::{generation, ino};
use crate::client::Client;
use crate::mount::NodeId;
use crate::{Error, Result};

/// How often the kernel looked up each inode, and which of them are held at the owner.
#[derive(Default)]
pub(super) struct Known {
    nodes: Mutex<HashMap<NodeId, Node>>,
}

#[derive(Clone, Copy, Default)]
struct Node {
    lookups: u64,
    held: Held,
    /// It was cut to nothing, and whoever did that has it open perhaps.
    cut: bool,
    /// Where the owner's errors of writebacks begin that nobody here has been told.
    errors: u64,
}

/// Whether an inode is held: at which incarnation ([`Client::incarnation`]).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Held {
    #[default]
    No,
    At(u64),
    /// Not any more: the number is another's there, or nobody's.
    Lost(u64),
}

impl Known {
    /// The kernel gets to know an inode, once more.
    pub(super) fn count(&self, node: NodeId) {
        self.nodes.lock().entry(node).or_default().lookups += 1;
    }

    /// The same if the inode is held; says whether it is.
    pub(super) fn count_held(&self, client: &Client, node: NodeId) -> bool {
        let held = Held::At(client.incarnation());
        match self.nodes.lock().get_mut(&node) {
            Some(known) if known.held == held => {
                known.lookups += 1;
                true
            }
            _ => false,
        }
    }

    /// The same where others may remove it at any time: it is held from the first look-up on.
    pub(super) fn hold_and_count(&self, client: &Client, node: NodeId) -> Result<()> {
        self.hold(client, node)?;
        self.count(node);
        Ok(())
    }

    /// The kernel gets to know an inode that is new and held already.
    pub(super) fn adopt(&self, client: &Client, node: NodeId) {
        let mut nodes = self.nodes.lock();
        let known = nodes.entry(node).or_default();
        known.lookups += 1;
        known.held = Held::At(client.incarnation());
    }

    /// Holds an inode, unless it is held already: it stays until the kernel has forgotten it.
    pub(super) fn hold(&self, client: &Client, node: NodeId) -> Result<()> {
        let held = self.nodes.lock().get(&node).map_or(Held::No, |known| known.held);
        if held == Held::At(client.incarnation()) {
            return Ok(());
        }
        let errors = hold_at(client, node)?;
        self.held(client, node, true, errors)
    }

    /// An inode is about to be cut to nothing.
    pub(super) fn cut(&self, node: NodeId) {
        if let Some(known) = self.nodes.lock().get_mut(&node) {
            known.cut = true;
        }
    }

    /// Whether it was, since somebody closed it for good.
    pub(super) fn is_cut(&self, node: NodeId) -> bool {
        self.nodes.lock().get(&node).is_some_and(|known| known.cut)
    }

    /// The same when somebody does now.
    pub(super) fn take_cut(&self, node: NodeId) -> bool {
        self.nodes.lock().get_mut(&node).is_some_and(|known| std::mem::take(&mut known.cut))
    }

    /// Before nodes that the kernel knows are used at the present incarnation of the owner: each is
    /// held there. Who is known to nobody here is the root, or asked for by its generation.
    pub(super) fn settle(&self, client: &Client, nodes: &[NodeId]) -> Result<()> {
        nodes.iter().try_for_each(|&node| self.renew(client, node))
    }

    /// Whether that is so already.
    pub(super) fn are_settled(&self, client: &Client, nodes: &[NodeId]) -> bool {
        let held = Held::At(client.incarnation());
        let known = self.nodes.lock();
        nodes.iter().all(|node| known.get(node).is_none_or(|node| node.held == held))
    }

    /// The nodes that are held at another incarnation than the client's.
    pub(super) fn unsettled(&self, client: &Client) -> Vec<NodeId> {
        let now = client.incarnation();
        let nodes = self.nodes.lock();
        let old = |node: &Node| matches!(node.held, Held::At(at) | Held::Lost(at) if at != now);
        nodes.iter().filter(|(_, node)| old(node)).map(|(&node, _)| node).collect()
    }

    /// Holds an inode again that is held at an earlier incarnation.
    pub(super) fn renew(&self, client: &Client, node: NodeId) -> Result<()> {
        let now = client.incarnation();
        match self.nodes.lock().get(&node).map(|known| known.held) {
            None => return Ok(()),
            Some(Held::At(at)) if at == now => return Ok(()),
            Some(Held::Lost(at)) if at == now => return Err(lost(node)),
            Some(_) => {}
        }
        match hold_at(client, node) {
            Ok(errors) => self.held(client, node, false, errors),
            Err(error) if is_stale(&error) => {
                if let Some(known) = self.nodes.lock().get_mut(&node) {
                    known.held = Held::Lost(now);
                }
                Err(lost(node))
            }
            Err(error) => Err(error),
        }
    }

    /// Notes a hold, `new` of what the kernel need not know yet.
    fn held(&self, client: &Client, node: NodeId, new: bool, errors: u64) -> Result<()> {
        let held = Held::At(client.incarnation());
        {
            let mut nodes = self.nodes.lock();
            let known = match new {
                true => Some(nodes.entry(node).or_default()),
                false => nodes.get_mut(&node),
            };
            if let Some(known) = known.filter(|known| known.held != held) {
                (known.held, known.errors) = (held, errors);
                return Ok(());
            }
        }
        // Two did at the same time, or the kernel has forgotten it meanwhile.
        client.let_go(ino(node), 1)
    }

    /// At which incarnation an inode is held, if at any.
    pub(super) fn held_at(&self, node: NodeId) -> Option<u64> {
        self.nodes.lock().get(&node).and_then(|known| known.held.at())
    }

    /// The kernel forgets some look-ups. The incarnation that is to let the inode go now.
    pub(super) fn forget(&self, node: NodeId, lookups: u64) -> Option<u64> {
        let mut nodes = self.nodes.lock();
        let known = nodes.get_mut(&node)?;
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return None;
        }
        nodes.remove(&node).and_then(|known| known.held.at())
    }

    /// The kernel has forgotten everything; returns what was held, and where.
    pub(super) fn forget_all(&self) -> Vec<(NodeId, u64)> {
        let nodes = std::mem::take(&mut *self.nodes.lock());
        nodes.into_iter().filter_map(|(node, known)| Some((node, known.held.at()?))).collect()
    }

    /// Makes a file durable and tells of errors that writebacks of it had, each once.
    pub(super) fn sync(&self, client: &Client, node: NodeId, data_only: bool) -> Result<()> {
        self.hold(client, node)?;
        let errors = || self.nodes.lock().get(&node).map_or(0, |it| it.errors);
        let mut seen = errors();
        let result = client.sync(ino(node), data_only, &mut seen);
        if let Some(known) = self.nodes.lock().get_mut(&node) {
            known.errors = known.errors.max(seen);
        }
        result
    }
}

impl Held {
    fn at(self) -> Option<u64> {
        match self {
            Self::At(at) => Some(at),
            Self::No | Self::Lost(_) => None,
        }
    }
}

fn hold_at(client: &Client, node: NodeId) -> Result<u64> {
    match node {
        // Its number is nobody else's.
        NodeId::ROOT => client.hold(ino(node)),
        _ => client.hold_known(ino(node), generation(node)),
    }
}

fn lost(node: NodeId) -> Error {
    Error::Stale(format!("{} of generation {}", ino(node), generation(node)))
}

fn is_stale(error: &Error) -> bool {
    error.errno() == rustix::io::Errno::STALE.raw_os_error() && !matches!(error, Error::Moved)
}
