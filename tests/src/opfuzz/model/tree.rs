//! What is there at one moment, for those who compare later.

use std::collections::BTreeMap;

use super::acl::List;
use super::{Kind, Model, Node, Time};
use crate::opfuzz::op::{Acl, acl_bytes, acl_name};

/// An object's attributes, without times and size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeNode {
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub links: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Of device nodes.
    pub device: (u32, u32),
    /// Of symbolic links.
    pub target: String,
    /// Extended attributes, access control lists among them.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// An object by one of its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeEntry {
    /// Its number in the model.
    pub ino: u32,
    /// Whether it is a regular file.
    pub is_file: bool,
    /// Its attributes.
    pub node: TreeNode,
}

/// All objects that have names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    /// By path.
    pub nodes: BTreeMap<String, TreeEntry>,
    /// Contents of files.
    files: BTreeMap<u32, Vec<u8>>,
}

impl Tree {
    /// What a file holds.
    #[must_use]
    pub fn bytes(&self, ino: u32) -> Option<&[u8]> {
        self.files.get(&ino).map(Vec::as_slice)
    }
}

impl Node {
    fn all_xattrs(&self) -> BTreeMap<String, Vec<u8>> {
        let lists = [(Acl::Access, &self.acl), (Acl::Default, &self.default_acl)];
        let list = |(acl, list): (Acl, &Option<List>)| {
            let list = list.as_ref()?;
            Some((acl_name(acl).to_owned(), acl_bytes(list.entries())))
        };
        self.xattrs.clone().into_iter().chain(lists.into_iter().filter_map(list)).collect()
    }
}

impl Model {
    /// What is there now. Files are taken as a whole: none may be large.
    #[must_use]
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        for (path, _) in self.paths() {
            let Some(ino) = self.inode(&path) else { continue };
            let node = self.at(ino);
            let (kind, device, target) = match &node.kind {
                Kind::File(_) => (0o100_000, (0, 0), ""),
                Kind::Dir(_) => (0o040_000, (0, 0), ""),
                Kind::Link(target) => (0o120_000, (0, 0), target.as_str()),
                Kind::Special(kind, device) => (*kind, *device, ""),
            };
            let shown = TreeNode {
                mode: kind | u32::from(node.mode),
                links: node.links,
                owner: node.owner,
                device,
                target: target.to_owned(),
                xattrs: node.all_xattrs(),
            };
            let is_file = matches!(node.kind, Kind::File(_));
            if let Kind::File(blocks) = &node.kind {
                tree.files.entry(ino).or_insert_with(|| blocks.read(0, blocks.size));
            }
            tree.nodes.insert(path, TreeEntry { ino, is_file, node: shown });
        }
        tree
    }

    /// What a path leads to, if it does; links are not followed.
    #[must_use]
    pub fn inode(&self, path: &str) -> Option<u32> {
        self.lookup(path, false).ok()
    }

    /// After how many operations an inode was changed last.
    #[must_use]
    pub fn last_change(&self, ino: u32) -> usize {
        match self.at(ino).ctime {
            Time::Step(step) => step as usize,
            _ => 0,
        }
    }

    /// What is open in a slot.
    #[must_use]
    pub fn open_inode(&self, slot: usize) -> Option<u32> {
        self.slots[slot].map(|file| file.ino)
    }

    /// What is open.
    #[must_use]
    pub fn open_inodes(&self) -> Vec<u32> {
        self.slots.iter().flatten().map(|file| file.ino).collect()
    }
}
