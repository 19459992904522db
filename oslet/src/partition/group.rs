//! Two small optimisers: members into groups, and places among members.

/// Puts weighted members into `count` groups (1 to the number of members, none empty): balanced to
/// an eighth of a group first, then near members together, then as balanced as can be. Says the
/// group of each member.
///
/// All groupings are tried where they are few. Else neighbours are put together first, then members
/// are moved and swapped while that helps. `near` is the price of having two members in one group.
pub(super) fn group(
    weights: &[u64],
    count: usize,
    near: impl Fn(usize, usize) -> u64,
) -> Vec<usize> {
    /// Above this many members the search would take long, and neighbours are near enough.
    const MAX_SEARCHED: usize = 64;
    /// Prices computed at most: each takes the square of the number of members.
    const MAX_TRIES: usize = 20_000;
    /// As many groupings are all looked at: eight members in four groups.
    const MAX_GROUPINGS: u64 = 1 << 16;

    let members = weights.len();
    let mut best = in_order(weights, count);
    if count >= members || count <= 1 || members > MAX_SEARCHED {
        return best;
    }
    let total: u64 = weights.iter().sum::<u64>().max(1);
    let row = |a: usize| (0..a).map(|b| near(a, b)).collect::<Vec<u64>>();
    let near: Vec<Vec<u64>> = (0..members).map(row).collect();
    let price = |groups: &[usize]| {
        let mut loads = vec![0u64; count];
        let mut sizes = vec![0usize; count];
        for (group, weight) in groups.iter().zip(weights) {
            loads[*group] += weight;
            sizes[*group] += 1;
        }
        let spread = loads.iter().max().unwrap_or(&0) - loads.iter().min().unwrap_or(&0);
        let pairs = (0..members).flat_map(|a| (0..a).map(move |b| (a, b)));
        let together = pairs.filter(|&(a, b)| groups[a] == groups[b]);
        let remoteness: u64 = together.map(|(a, b)| near[a][b]).sum();
        let squares: u64 = loads.iter().map(|load| load * load).sum();
        (sizes.contains(&0), spread * 8 * count as u64 / total, remoteness, squares)
    };
    let groupings = u32::try_from(members).ok().and_then(|n| (count as u64).checked_pow(n));
    if let Some(groupings) = groupings.filter(|&all| all <= MAX_GROUPINGS) {
        let mut lowest = price(&best);
        for number in 0..groupings {
            let digits = std::iter::successors(Some(number), |n| Some(n / count as u64));
            let digit = |n: u64| (n % count as u64) as usize;
            let groups: Vec<usize> = digits.map(digit).take(members).collect();
            let price = price(&groups);
            if price < lowest {
                (best, lowest) = (groups, price);
            }
        }
        return best;
    }
    let (mut lowest, mut tries) = (price(&best), 0);
    let mut improved = true;
    while improved && tries < MAX_TRIES {
        improved = false;
        let moves = (0..members).flat_map(|a| (0..count).map(move |to| Change::Move(a, to)));
        let swaps = (0..members).flat_map(|a| (0..a).map(move |b| Change::Swap(a, b)));
        for change in moves.chain(swaps) {
            let mut groups = best.clone();
            match change {
                Change::Move(a, to) => groups[a] = to,
                Change::Swap(a, b) => groups.swap(a, b),
            }
            if groups != best {
                tries += 1;
                let price = price(&groups);
                if price < lowest {
                    (best, lowest, improved) = (groups, price, true);
                }
            }
            if tries >= MAX_TRIES {
                break;
            }
        }
    }
    best
}

enum Change {
    Move(usize, usize),
    Swap(usize, usize),
}

/// Neighbours together, each group as close to its share as that allows.
fn in_order(weights: &[u64], count: usize) -> Vec<usize> {
    let total: u64 = weights.iter().sum::<u64>().max(1);
    let (mut groups, mut before) = (Vec::with_capacity(weights.len()), 0u64);
    for (index, weight) in weights.iter().enumerate() {
        let middle = (before + weight / 2) * count as u64 / total;
        let previous = groups.last().copied();
        let highest =
            previous.map_or(0, |previous: usize| previous + 1).min(count.saturating_sub(1));
        // Each of the groups that are still empty needs one of the members that are left.
        let lowest =
            (count + index).saturating_sub(weights.len()).max(previous.unwrap_or(0)).min(highest);
        groups.push((middle as usize).clamp(lowest, highest));
        before += weight;
    }
    groups
}

/// Divides `count` places among members of (weight, most places), at least one each, so that the
/// largest weight a place is as small as can be. What does not fit anywhere is left out.
pub(super) fn apportion(members: &[(u64, usize)], count: usize) -> Vec<usize> {
    let mut places = vec![1; members.len()];
    for _ in members.len()..count {
        let heavier = |&a: &usize, &b: &usize| {
            let share =
                |member: usize, other: usize| u128::from(members[member].0) * places[other] as u128;
            share(a, b).cmp(&share(b, a)).then(b.cmp(&a))
        };
        let open = (0..members.len()).filter(|&member| places[member] < members[member].1);
        let Some(heaviest) = open.max_by(heavier) else { break };
        places[heaviest] += 1;
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_group_is_empty(
            weights in prop::collection::vec(1u64..50, 1..20),
            count in 1usize..20,
        ) {
            let count = count.min(weights.len());
            let groups = group(&weights, count, |a, b| (a.abs_diff(b)) as u64);
            prop_assert_eq!(groups.len(), weights.len());
            prop_assert!((0..count).all(|group| groups.contains(&group)));
            prop_assert!(groups.iter().all(|&group| group < count));
        }

        #[test]
        fn every_place_is_given_and_none_too_many(
            members in prop::collection::vec((1u64..100, 1usize..30), 1..12),
            count in 1usize..100,
        ) {
            let room: usize = members.iter().map(|member| member.1).sum();
            let count = count.clamp(members.len(), room.max(members.len()));
            let places = apportion(&members, count);
            prop_assert_eq!(places.iter().sum::<usize>(), count);
            prop_assert!(places.iter().zip(&members).all(|(&p, m)| p >= 1 && p <= m.1));
        }
    }

    #[test]
    fn near_ones_go_together_even_when_they_are_not_neighbours() {
        // A ring in which 0-2, 1-3, 4-6 and 5-7 are near.
        let near = |a: usize, b: usize| if a.abs_diff(b) == 2 && a / 4 == b / 4 { 10 } else { 40 };
        let groups = group(&[4; 8], 4, near);
        for (a, b) in [(0, 2), (1, 3), (4, 6), (5, 7)] {
            assert_eq!(groups[a], groups[b], "{groups:?}");
        }
    }

    #[test]
    fn the_largest_share_is_the_smallest_possible() {
        assert_eq!(apportion(&[(4, 4), (2, 2)], 4), [3, 1]);
        assert_eq!(apportion(&[(8, 8), (8, 8)], 3), [2, 1]);
        assert_eq!(apportion(&[(2, 2), (100, 3)], 5), [2, 3]);
    }
}
