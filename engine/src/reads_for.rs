//! The Reads For engine: answers who reads for whom, by verified evidence.
//!
//! *A reads for B* is reflexive and transitive. The `Graph` over all evidence is in memory, a few
//! bytes for each piece, and follows the registry. The evidence itself stays in the registry until
//! it is needed.
//!
//! Identities are identified by their keys. A grant to a decryption key alone (a contact with only
//! an age recipient) holds for whoever has that key and is not transitive: nobody has signed which
//! identity the key belongs to.
//!
//! An identity without a decryption key reads only for itself, whatever evidence says.
//!
//! Evidence counts until its end, by the clock of this machine, unless it is revoked. Evidence of
//! version 1 does not count.

use std::collections::HashMap;

use crate::EngineError;
use crate::evidence::{BadEvidence, Evidence, KeysId, PublicKeys, Revocation, now};
use crate::registry::{Edge as Piece, Registry, RegistryError, Revision};

/// The state of the engine.
#[derive(Default)]
pub(crate) struct ReadsFor {
    graph: Graph,
    /// The last piece that is in the graph, the last revocation, and when the registry was
    /// looked at.
    last: i64,
    last_revocation: i64,
    seen: Option<Revision>,
}

/// The evidence about an identity.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct EvidenceAbout {
    /// Every piece in which the identity stands on either side, whether it counts or not.
    pub direct: Vec<Evidence>,
    /// The revocations of these.
    pub revocations: Vec<Revocation>,
    /// The evidence that leads on: for each identity that it reads for, or that reads for it,
    /// through others, the last piece of a shortest chain that counts.
    pub onward: Vec<Evidence>,
}

impl ReadsFor {
    /// Takes in what has come to the registry since.
    fn follow(&mut self, registry: &Registry, now: Revision) -> Result<(), RegistryError> {
        if self.seen == Some(now) {
            return Ok(());
        }
        for edge in registry.evidence_after(self.last)? {
            self.last = edge.id;
            self.graph.add(&edge);
        }
        for revoked in registry.revoked_after(self.last_revocation)? {
            self.last_revocation = revoked.by;
            if let Some((id, from, to)) = revoked.evidence {
                self.graph.end(&from, &to, id);
            }
        }
        self.seen = Some(now);
        Ok(())
    }

    /// Whether `a` reads for `b`.
    pub(crate) fn reads_for(
        &mut self,
        registry: &Registry,
        now: Revision,
        a: &PublicKeys,
        b: &PublicKeys,
    ) -> Result<bool, RegistryError> {
        self.follow(registry, now)?;
        let target = b.id();
        let is_same = a.decrypt.is_some() && a.decrypt == b.decrypt;
        let at = moment();
        Ok(is_same || as_reader(a).any(|a| self.graph.reaches(&a, &target, at)))
    }

    /// The chain of evidence by which `a` reads for `b`; empty if it is trivial, `None` if there is
    /// none.
    pub(crate) fn chain(
        &mut self,
        registry: &Registry,
        now: Revision,
        a: &PublicKeys,
        b: &PublicKeys,
    ) -> Result<Option<Vec<Evidence>>, RegistryError> {
        self.follow(registry, now)?;
        if a == b || (a.decrypt.is_some() && a.decrypt == b.decrypt) {
            return Ok(Some(Vec::new()));
        }
        let target = b.id();
        let at = moment();
        let chain = as_reader(a).find_map(|a| self.graph.chain(&a, &target, at));
        chain.map(|ids| registry.evidence(&ids)).transpose()
    }

    /// The evidence about `identity`.
    pub(crate) fn about(
        &mut self,
        registry: &Registry,
        now: Revision,
        identity: &PublicKeys,
    ) -> Result<EvidenceAbout, RegistryError> {
        self.follow(registry, now)?;
        let ids: Vec<_> = as_reader(identity).collect();
        let (direct, onward) = self.graph.around(&ids, moment());
        let direct = registry.evidence(&direct)?;
        Ok(EvidenceAbout {
            revocations: registry.revocations_of(&direct)?,
            direct,
            onward: registry.evidence(&onward)?,
        })
    }
}

/// The last moment: then only evidence without an end counts.
const LAST: i64 = Piece::ALWAYS - 1;

/// The current time, as edges store their ends.
fn moment() -> i64 {
    i64::try_from(now()).map_or(LAST, |now| now.min(LAST))
}

/// The identity itself, and its decryption key alone.
pub(crate) fn as_reader(keys: &PublicKeys) -> impl Iterator<Item = KeysId> {
    let alone = keys.decryptor();
    let more = (!alone.is_empty() && alone != *keys).then(|| alone.id());
    std::iter::once(keys.id()).chain(more)
}

/// Refuses evidence that does not verify. `known` are the keys that a name has here.
pub(crate) fn check(
    evidence: &Evidence,
    known: impl Fn(&str) -> Result<Option<PublicKeys>, RegistryError>,
) -> Result<(), EngineError> {
    for party in [&evidence.from_identity, &evidence.to_identity] {
        if known(&party.name)?.is_some_and(|keys| keys.contradict(&party.keys)) {
            return Err(invalid(BadEvidence::OtherKeys));
        }
    }
    evidence.verify().map_err(invalid)
}

pub(crate) fn invalid(reason: BadEvidence) -> EngineError {
    EngineError::InvalidEvidence { reason }
}

/// A directed graph with an edge for each piece of evidence, from the reader to the identity that
/// it reads for.
#[derive(Default)]
struct Graph {
    nodes: HashMap<KeysId, u32>,
    /// The edges of each node, forwards and backwards.
    edges: [Vec<Vec<Edge>>; 2],
    /// The search and direction in which each node was last seen.
    stamps: [Vec<u32>; 2],
    search: u32,
}

#[derive(Clone, Copy)]
struct Edge {
    node: u32,
    evidence: i64,
    /// As in [`Piece::until`].
    until: i64,
}

impl Edge {
    fn counts(&self, at: i64) -> bool {
        at < self.until
    }
}

const FORWARDS: usize = 0;
const BACKWARDS: usize = 1;

impl Graph {
    fn add(&mut self, piece: &Piece) {
        let (from, to) = (self.node(piece.from), self.node(piece.to));
        let edge = |node| Edge {
            node,
            evidence: piece.id,
            until: piece.until,
        };
        self.edges[FORWARDS][from as usize].push(edge(to));
        self.edges[BACKWARDS][to as usize].push(edge(from));
    }

    /// Removes a revoked piece.
    fn end(&mut self, from: &KeysId, to: &KeysId, evidence: i64) {
        for (direction, node) in [(FORWARDS, from), (BACKWARDS, to)] {
            let Some(node) = self.nodes.get(node) else {
                continue;
            };
            for edge in &mut self.edges[direction][*node as usize] {
                if edge.evidence == evidence {
                    edge.until = Piece::NEVER;
                }
            }
        }
    }

    fn node(&mut self, id: KeysId) -> u32 {
        // There is no room for so many that the number would not fit.
        let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let node = *self.nodes.entry(id).or_insert(next);
        if node == next {
            for direction in [FORWARDS, BACKWARDS] {
                self.edges[direction].push(Vec::new());
                self.stamps[direction].push(0);
            }
        }
        node
    }

    /// Begins a search: nothing has been seen yet.
    fn begin(&mut self) {
        self.search = self.search.wrapping_add(1);
        if self.search == 0 {
            self.stamps.iter_mut().for_each(|s| s.fill(0));
            self.search = 1;
        }
    }

    /// Marks a node as seen. Returns whether it was not seen before.
    fn see(&mut self, direction: usize, node: u32) -> bool {
        let stamp = &mut self.stamps[direction][node as usize];
        let is_new = *stamp != self.search;
        *stamp = self.search;
        is_new
    }

    /// Whether there is a path from `a` to `b`. The search starts from both ends and continues at
    /// the smaller frontier, so it visits few nodes.
    fn reaches(&mut self, a: &KeysId, b: &KeysId, at: i64) -> bool {
        if a == b {
            return true;
        }
        let (Some(&a), Some(&b)) = (self.nodes.get(a), self.nodes.get(b)) else {
            return false;
        };
        self.begin();
        self.see(FORWARDS, a);
        self.see(BACKWARDS, b);
        let mut fronts = [vec![a], vec![b]];
        let mut next = Vec::new();
        while fronts.iter().all(|front| !front.is_empty()) {
            let direction = usize::from(fronts[BACKWARDS].len() < fronts[FORWARDS].len());
            for node in fronts[direction].drain(..) {
                for i in 0..self.edges[direction][node as usize].len() {
                    let edge = self.edges[direction][node as usize][i];
                    if !edge.counts(at) {
                        continue;
                    }
                    let neighbour = edge.node;
                    if self.stamps[1 - direction][neighbour as usize] == self.search {
                        return true;
                    }
                    if self.see(direction, neighbour) {
                        next.push(neighbour);
                    }
                }
            }
            std::mem::swap(&mut fronts[direction], &mut next);
        }
        false
    }

    /// All nodes that can be reached from `starts` in one direction, nearest first: for each the
    /// edge by which it was found, and the index in the result of the node that it was found from.
    fn tree(&mut self, direction: usize, starts: &[KeysId], at: i64) -> Vec<(Edge, Option<usize>)> {
        self.begin();
        let starts: Vec<u32> = starts
            .iter()
            .filter_map(|id| self.nodes.get(id).copied())
            .collect();
        let mut found: Vec<(Edge, Option<usize>)> = Vec::new();
        for start in &starts {
            self.see(direction, *start);
        }
        let mut done = 0;
        let mut queue: Vec<(u32, Option<usize>)> = starts.iter().map(|s| (*s, None)).collect();
        while let Some(&(node, place)) = queue.get(done) {
            done += 1;
            for i in 0..self.edges[direction][node as usize].len() {
                let edge = self.edges[direction][node as usize][i];
                if edge.counts(at) && self.see(direction, edge.node) {
                    queue.push((edge.node, Some(found.len())));
                    found.push((edge, place));
                }
            }
        }
        found
    }

    /// The evidence along a shortest path from `a` to `b`.
    fn chain(&mut self, a: &KeysId, b: &KeysId, at: i64) -> Option<Vec<i64>> {
        let target = *self.nodes.get(b)?;
        let tree = self.tree(FORWARDS, &[*a], at);
        let mut place = tree.iter().position(|(edge, _)| edge.node == target);
        place?;
        let mut chain = Vec::new();
        while let Some((edge, from)) = place.map(|place| tree[place]) {
            chain.push(edge.evidence);
            place = from;
        }
        chain.reverse();
        Some(chain)
    }

    /// The evidence in which one of `ids` is on either side, and the evidence that leads on.
    fn around(&mut self, ids: &[KeysId], at: i64) -> (Vec<i64>, Vec<i64>) {
        let nodes = ids.iter().filter_map(|id| self.nodes.get(id));
        let nodes: Vec<usize> = nodes.map(|node| *node as usize).collect();
        let (mut direct, mut onward) = (Vec::new(), Vec::new());
        for direction in [FORWARDS, BACKWARDS] {
            let edges = nodes.iter().flat_map(|node| &self.edges[direction][*node]);
            direct.extend(edges.map(|edge| edge.evidence));
            let tree = self.tree(direction, ids, at);
            let further = tree.iter().filter(|(_, from)| from.is_some());
            onward.extend(further.map(|(edge, _)| edge.evidence));
        }
        direct.sort_unstable();
        direct.dedup();
        onward.retain(|id| direct.binary_search(id).is_err());
        onward.sort_unstable();
        onward.dedup();
        (direct, onward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Terms;
    use proptest::prelude::*;

    fn id(n: u8) -> KeysId {
        KeysId([n; 32])
    }

    fn add(graph: &mut Graph, from: u8, to: u8, evidence: i64) {
        graph.add(&Piece {
            id: evidence,
            from: id(from),
            to: id(to),
            until: i64::MAX,
        });
    }

    #[test]
    fn what_has_ended_or_is_revoked_is_no_way() {
        let mut graph = Graph::default();
        graph.add(&Piece {
            id: 1,
            from: id(1),
            to: id(2),
            until: 100,
        });
        add(&mut graph, 2, 3, 2);
        for (at, expected) in [(99, true), (100, false)] {
            assert_eq!(graph.reaches(&id(1), &id(3), at), expected);
            assert_eq!(graph.chain(&id(1), &id(3), at).is_some(), expected);
            let onward = graph.around(&[id(1)], at);
            assert_eq!(onward, (vec![1], if expected { vec![2] } else { vec![] }));
        }
        graph.end(&id(2), &id(3), 2);
        assert!(!graph.reaches(&id(1), &id(3), 0));
        assert!(graph.reaches(&id(1), &id(2), 0));
        // Another grant of the same stands.
        add(&mut graph, 2, 3, 3);
        assert_eq!(graph.chain(&id(1), &id(3), 0), Some(vec![1, 3]));
    }

    #[test]
    fn at_the_last_moment_only_what_has_no_end_counts() {
        for (end, counts) in [(Some(Terms::LATEST), false), (Some(1), false), (None, true)] {
            let mut graph = Graph::default();
            graph.add(&Piece {
                id: 1,
                from: id(1),
                to: id(2),
                until: Piece::until(end),
            });
            assert_eq!(graph.reaches(&id(1), &id(2), LAST), counts, "{end:?}");
        }
    }

    /// The relation by its definition: reflexive, and closed until nothing is added.
    fn naive(edges: &[(u8, u8)], nodes: u8) -> Vec<Vec<bool>> {
        let mut reads: Vec<Vec<bool>> = (0..nodes)
            .map(|a| (0..nodes).map(|b| a == b).collect())
            .collect();
        loop {
            let before = reads.clone();
            for (from, to) in edges {
                for row in &mut reads {
                    row[usize::from(*to)] |= row[usize::from(*from)];
                }
            }
            if reads == before {
                return reads;
            }
        }
    }

    proptest! {
        #[test]
        fn the_closure_is_the_naive_one_after_every_piece(
            edges in prop::collection::vec((0u8..9, 0u8..9), 0..24)
        ) {
            let mut graph = Graph::default();
            for known in 0..=edges.len() {
                if let Some((from, to)) = known.checked_sub(1).map(|last| edges[last]) {
                    add(&mut graph, from, to, known as i64);
                }
                let reads = naive(&edges[..known], 9);
                for a in 0..9u8 {
                    for b in 0..9u8 {
                        let expected = reads[usize::from(a)][usize::from(b)];
                        prop_assert_eq!(graph.reaches(&id(a), &id(b), 0), expected);
                        if a == b {
                            continue;
                        }
                        let chain = graph.chain(&id(a), &id(b), 0);
                        prop_assert_eq!(chain.is_some(), expected);
                        // The chain is one: it begins, goes on and ends where it should.
                        let mut at = a;
                        for piece in chain.into_iter().flatten() {
                            let (from, to) = edges[piece as usize - 1];
                            prop_assert_eq!(from, at);
                            at = to;
                        }
                        prop_assert!(!expected || at == b);
                    }
                }
            }
        }

        #[test]
        fn what_is_around_an_identity_proves_all_that_is_true_of_it(
            edges in prop::collection::vec((0u8..9, 0u8..9), 0..24),
            x in 0u8..9,
        ) {
            let mut graph = Graph::default();
            for (i, (from, to)) in edges.iter().enumerate() {
                add(&mut graph, *from, *to, i as i64);
            }
            let (direct, onward) = graph.around(&[id(x)], 0);
            let touching = edges.iter().enumerate().filter(|(_, (from, to))| *from == x || *to == x);
            prop_assert_eq!(&direct, &touching.map(|(i, _)| i as i64).collect::<Vec<_>>());
            let part: Vec<_> = direct.iter().chain(&onward).map(|i| edges[*i as usize]).collect();
            let (all, part) = (naive(&edges, 9), naive(&part, 9));
            for other in 0..9usize {
                let x = usize::from(x);
                prop_assert_eq!(all[x][other], part[x][other]);
                prop_assert_eq!(all[other][x], part[other][x]);
            }
        }
    }
}
