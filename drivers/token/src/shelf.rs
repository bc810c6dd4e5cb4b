//! What is open in this process, opened once and shared.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, Weak};

use crate::sync::lock;

/// One value for each name, created on first use. A lock in the value can be held while its content
/// is opened, so that nobody opens it twice.
pub struct Places<K, P>(Mutex<HashMap<K, Arc<P>>>);

impl<K: Eq + Hash, P: Default> Places<K, P> {
    /// The value of this name.
    pub fn of<Q: ?Sized + Eq + Hash + ToOwned<Owned = K>>(&self, name: &Q) -> Arc<P>
    where
        K: Borrow<Q>,
    {
        let mut places = lock(&self.0);
        if let Some(place) = places.get(name) {
            return Arc::clone(place);
        }
        let place = Arc::<P>::default();
        places.insert(name.to_owned(), Arc::clone(&place));
        place
    }

    /// Every value that was created.
    pub fn all(&self) -> Vec<Arc<P>> {
        lock(&self.0).values().cloned().collect()
    }
}

impl<K, P> Default for Places<K, P> {
    fn default() -> Self {
        Places(Mutex::default())
    }
}

/// Open things, each for as long as somebody holds it.
pub struct Shelf<T: ?Sized>(Mutex<Vec<Weak<T>>>);

impl<T: ?Sized> Shelf<T> {
    /// The open one that matches, or else the one that `make` opens. No other caller opens one
    /// meanwhile.
    pub fn find_or_make(
        &self,
        is_wanted: impl Fn(&T) -> bool,
        make: impl FnOnce() -> Arc<T>,
    ) -> Arc<T> {
        let mut open = lock(&self.0);
        open.retain(|one| one.strong_count() > 0);
        // All are let go after the lock is: the last reference may want it.
        let all: Vec<Arc<T>> = open.iter().filter_map(Weak::upgrade).collect();
        let found = all.iter().find(|one| is_wanted(one)).map(Arc::clone);
        let one = found.unwrap_or_else(|| {
            let one = make();
            open.push(Arc::downgrade(&one));
            one
        });
        drop(open);
        one
    }

    /// Adds an open one.
    pub fn add(&self, one: Weak<T>) {
        let mut open = lock(&self.0);
        open.retain(|one| one.strong_count() > 0);
        open.push(one);
    }

    /// All that are open.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).iter().all(|one| one.strong_count() == 0)
    }
}

impl<T: ?Sized> Default for Shelf<T> {
    fn default() -> Self {
        Shelf(Mutex::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_one_place() {
        let places: Places<String, Mutex<u8>> = Places::default();
        *lock(&places.of("a")) = 1;
        assert_eq!(*lock(&places.of("a")), 1);
        assert_eq!(*lock(&places.of("b")), 0);
        assert_eq!(places.all().len(), 2);
    }

    #[test]
    fn what_is_open_is_shared_and_what_nobody_holds_is_made_anew() {
        let shelf: Shelf<u8> = Shelf::default();
        let first = shelf.find_or_make(|one| *one == 1, || Arc::new(1));
        let again = shelf.find_or_make(|one| *one == 1, || Arc::new(7));
        assert!(Arc::ptr_eq(&first, &again));
        let other = shelf.find_or_make(|one| *one == 2, || Arc::new(2));
        assert_eq!((shelf.all().len(), *other), (2, 2));
        drop((first, again, other));
        assert!(shelf.is_empty());
        assert_eq!(*shelf.find_or_make(|one| *one == 1, || Arc::new(3)), 3);
    }
}
