//! A map that grows in small steps.
//!
//! A hash table doubles all at once: with 131,072 names of blocks in 5 ms, with millions in as much as a look-up may wait for
//! at all. So the names are spread over [`TABLES`] of them, which double one at a time.

use std::hash::{BuildHasher as _, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// Of sixteen million names one has 32,768: some half a millisecond. Empty ones take 16 KiB together.
const TABLES: usize = 512;

/// Names, and what they stand for.
pub(crate) struct Spread<K, V> {
    tables: Tables<(K, V), TABLES>,
    random: RandomState,
}

/// As many hash tables, which take and give what one does.
pub(crate) struct Tables<T, const N: usize> {
    tables: Box<[HashTable<T>]>,
    count: usize,
}

impl<K, V> Default for Spread<K, V> {
    fn default() -> Self {
        Self { tables: Tables::default(), random: RandomState::default() }
    }
}

impl<T, const N: usize> Default for Tables<T, N> {
    fn default() -> Self {
        Self { tables: (0..N).map(|_| HashTable::new()).collect(), count: 0 }
    }
}

impl<K: Hash + Eq, V> Spread<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.tables.find(self.random.hash_one(key), |(known, _)| known == key).map(|(_, value)| value)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// False, and nothing changes, for a key that is there.
    pub(crate) fn insert(&mut self, key: K, value: V) -> bool {
        let is_new = !self.contains_key(&key);
        if is_new {
            let Self { tables, random } = self;
            tables.insert(random.hash_one(&key), (key, value), |(known, _)| random.hash_one(known));
        }
        is_new
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.tables.remove(self.random.hash_one(key), |(known, _)| known == key).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let sum = self.random.hash_one(key);
        self.tables.find_mut(sum, |(known, _)| known == key).map(|(_, value)| value)
    }

    /// A part of what is there, by number. What stays meanwhile is met once by who asks for one part after the other.
    pub(crate) fn part(&self, number: usize) -> Option<impl Iterator<Item = &(K, V)>> {
        self.tables.tables.get(number).map(HashTable::iter)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.tables.tables.iter().flatten()
    }

    pub(crate) const fn len(&self) -> usize {
        self.tables.len()
    }
}

impl<T, const N: usize> Tables<T, N> {
    /// By bits of which the tables themselves make little: they take the lowest and the highest ones.
    const fn place(sum: u64) -> usize {
        (sum >> 40) as usize % N
    }

    pub(crate) fn find(&self, sum: u64, is_it: impl FnMut(&T) -> bool) -> Option<&T> {
        self.tables[Self::place(sum)].find(sum, is_it)
    }

    fn find_mut(&mut self, sum: u64, is_it: impl FnMut(&T) -> bool) -> Option<&mut T> {
        self.tables[Self::place(sum)].find_mut(sum, is_it)
    }

    /// One that is not there.
    pub(crate) fn insert(&mut self, sum: u64, value: T, sum_of: impl Fn(&T) -> u64) {
        self.tables[Self::place(sum)].insert_unique(sum, value, sum_of);
        self.count += 1;
    }

    pub(crate) fn remove(&mut self, sum: u64, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let entry = self.tables[Self::place(sum)].find_entry(sum, is_it).ok()?;
        self.count -= 1;
        Some(entry.remove().0)
    }

    /// Room for so many more, at once.
    pub(crate) fn reserve(&mut self, count: usize, sum_of: impl Fn(&T) -> u64) {
        self.tables.iter_mut().for_each(|table| table.reserve(count / N, &sum_of));
    }

    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn allocation_size(&self) -> usize {
        self.tables.iter().map(HashTable::allocation_size).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_is_a_map() {
        let mut random = fastrand::Rng::with_seed(3);
        let (mut spread, mut plain) = (Spread::default(), HashMap::new());
        for step in 0..50_000_u32 {
            let key = random.u32(..5000);
            match random.u8(..3) {
                0 => assert_eq!(spread.remove(&key), plain.remove(&key)),
                _ => {
                    let is_new = !plain.contains_key(&key);
                    assert_eq!(spread.insert(key, step), is_new);
                    plain.entry(key).or_insert(step);
                }
            }
            assert_eq!((spread.len(), spread.get(&key)), (plain.len(), plain.get(&key)));
            let (value, other) = (spread.get_mut(&key), plain.get_mut(&key));
            value.into_iter().chain(other).for_each(|value| *value += 1);
        }
        assert_eq!(spread.iter().copied().collect::<HashMap<_, _>>(), plain);
        let parts: Vec<_> = (0..).map_while(|number| spread.part(number)).flatten().copied().collect();
        assert_eq!((parts.len(), parts.into_iter().collect::<HashMap<_, _>>()), (plain.len(), plain));
    }

    #[test]
    fn no_table_has_many_of_the_names() {
        let mut spread = Spread::default();
        for number in 0..100_000_u64 {
            spread.insert(number, ());
        }
        let most = spread.tables.tables.iter().map(HashTable::len).max();
        assert!(most < Some(100_000 / TABLES * 2), "{most:?}");
    }
}
