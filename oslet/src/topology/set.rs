//! Sets of CPU or node numbers, in the two notations of the kernel.
//!
//! The formats are those of `Documentation/admin-guide/cputopology.rst` and `cpusets`: a list
//! (`0-3,8`) and a mask (32-bit hexadecimal words, most significant first: `00000000,0000010f`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// CPUs, by their number.
pub type CpuSet = IdSet;
/// NUMA nodes, by their number.
pub type NodeSet = IdSet;

/// One more than the largest number that is accepted: the most CPUs that a kernel can be built for.
pub const MAX_ID: u32 = 8192;

/// A set of small numbers. Ordered, printed and (de)serialised as the kernel's list: `0-3,8`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct IdSet {
    /// Bit n of word w is number 64w + n; the last word is never zero.
    words: Vec<u64>,
}

impl IdSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Adds a number; `false` if it is not below [`MAX_ID`] (the set is then unchanged).
    pub fn insert(&mut self, id: u32) -> bool {
        if id >= MAX_ID {
            return false;
        }
        let word = id as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % 64);
        true
    }

    /// Whether the number is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The smallest number.
    pub fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| index as u32 * 64 + bit)
        })
    }

    /// The numbers, ascending, as system calls and control groups want them.
    pub fn to_vec(&self) -> Vec<u32> {
        self.iter().collect()
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        Self::trimmed(self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect())
    }

    /// What is in either.
    pub fn or(&self, other: &Self) -> Self {
        let (mut long, short) = if self.words.len() >= other.words.len() {
            (self.clone(), other)
        } else {
            (other.clone(), self)
        };
        long.words.iter_mut().zip(&short.words).for_each(|(a, b)| *a |= b);
        long
    }

    /// What is here and not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        let theirs = |index: usize| other.words.get(index).copied().unwrap_or(0);
        Self::trimmed(self.words.iter().enumerate().map(|(i, word)| word & !theirs(i)).collect())
    }

    /// Whether everything here is in `other` too.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.minus(other).is_empty()
    }

    /// Reads the list notation: `0-3,8`. White space around it and an empty list are accepted.
    ///
    /// # Errors
    /// What is wrong with the text, as the end of a sentence that starts with the object.
    pub fn parse_list(text: &str) -> Result<Self, String> {
        let mut set = Self::new();
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
        if text.is_empty() {
            return Ok(set);
        }
        for item in text.split(',') {
            let item = item.trim();
            let (first, last) = match item.split_once('-') {
                Some((first, last)) => (number(first, item)?, number(last, item)?),
                None => (number(item, item)?, number(item, item)?),
            };
            if first > last {
                return Err(format!("\"{item}\" runs backwards"));
            }
            (first..=last).for_each(|id| {
                set.insert(id);
            });
        }
        Ok(set)
    }

    /// Reads the mask notation: `00000000,0000010f`.
    ///
    /// # Errors
    /// What is wrong with the text, as the end of a sentence that starts with the object.
    pub fn parse_mask(text: &str) -> Result<Self, String> {
        let mut set = Self::new();
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
        for (index, word) in text.rsplit(',').enumerate() {
            let plain = !word.is_empty() && word.len() <= 8;
            let bits = match u32::from_str_radix(word, 16) {
                Ok(bits) if plain && word.bytes().all(|b| b.is_ascii_hexdigit()) => bits,
                _ => return Err(format!("\"{}\" is not a 32-bit mask word", shorten(word))),
            };
            for bit in (0..32).filter(|bit| bits & (1 << bit) != 0) {
                let id =
                    u32::try_from(index).ok().and_then(|i| i.checked_mul(32)?.checked_add(bit));
                if !id.is_some_and(|id| set.insert(id)) {
                    return Err(format!("the mask has a number beyond {}", MAX_ID - 1));
                }
            }
        }
        Ok(set)
    }

    fn trimmed(mut words: Vec<u64>) -> Self {
        while words.last() == Some(&0) {
            words.pop();
        }
        Self { words }
    }
}

fn number(text: &str, item: &str) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(id) if id < MAX_ID => Ok(id),
        Ok(id) => Err(format!("{id} is beyond {}", MAX_ID - 1)),
        Err(_) => Err(format!("\"{}\" is not a number or a range such as 0-3", shorten(item))),
    }
}

/// At most 40 characters of untrusted text, control characters replaced, for a message.
pub(crate) fn shorten(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let mut short: String = text.chars().take(40).map(clean).collect();
    if text.chars().nth(40).is_some() {
        short.push_str("...");
    }
    short
}

impl FromIterator<u32> for IdSet {
    /// Numbers that are not below [`MAX_ID`] are left out.
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut set = Self::new();
        for id in ids {
            set.insert(id);
        }
        set
    }
}

impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut ids = self.iter().peekable();
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|&next| next == last + 1) {
                last = next;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&first.to_string());
            if last > first {
                text.push_str(&format!("-{last}"));
            }
        }
        f.pad(&text)
    }
}

impl fmt::Debug for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl From<IdSet> for String {
    fn from(set: IdSet) -> Self {
        set.to_string()
    }
}

impl TryFrom<String> for IdSet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse_list(&text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn model(set: &IdSet) -> BTreeSet<u32> {
        set.iter().collect()
    }

    proptest! {
        #[test]
        fn a_set_survives_its_list(ids in prop::collection::btree_set(0..MAX_ID, 0..40)) {
            let set: IdSet = ids.iter().copied().collect();
            prop_assert_eq!(&model(&set), &ids);
            prop_assert_eq!(IdSet::parse_list(&set.to_string()).unwrap(), set);
        }

        #[test]
        fn the_operations_are_those_of_sets(
            a in prop::collection::btree_set(0u32..300, 0..60),
            b in prop::collection::btree_set(0u32..300, 0..60),
        ) {
            let (x, y): (IdSet, IdSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(model(&x.and(&y)), a.intersection(&b).copied().collect());
            prop_assert_eq!(model(&x.or(&y)), a.union(&b).copied().collect());
            prop_assert_eq!(model(&x.minus(&y)), a.difference(&b).copied().collect());
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x == y, a == b);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}|[0-9a-f,\\- ]{0,80}") {
            let _ = IdSet::parse_list(&text);
            let _ = IdSet::parse_mask(&text);
        }
    }

    #[test]
    fn the_kernels_notations() {
        let set = IdSet::parse_mask("00000001,80000103\n").unwrap();
        assert_eq!(set.to_string(), "0-1,8,31-32");
        assert_eq!(IdSet::parse_list(" 0-1,8,31-32\n").unwrap(), set);
        assert_eq!(IdSet::parse_list("\n").unwrap(), IdSet::new());
        for bad in ["3-1", "8192", "0-99999999999", "x", "1,,2", "-1", "1-", "0-3:2"] {
            assert!(IdSet::parse_list(bad).is_err(), "{bad}");
        }
        let wide = format!("1{}", ",00000000".repeat(256));
        for bad in ["", "g", "123456789", "1,,2", "+1", wide.as_str()] {
            assert!(IdSet::parse_mask(bad).is_err(), "{bad}");
        }
    }
}
