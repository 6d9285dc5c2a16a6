//! Trees and entries.

mod signed;

use std::collections::BTreeMap;

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::Sha256;

use super::entry::{Close, Correction, Counts, Entry, Lineage, VoteEntry, Withdrawal, Withdrawn};
use super::row::{Nonce, Row, Secret};
use super::tree::{
    Frontier, Hash, Levels, check_consistency, check_inclusion, entries_path, leaf_hash,
    prove_consistency, prove_inclusion, tile_path,
};
use crate::model::vote::Choice;

/// Tiles in memory.
#[derive(Default)]
struct Tiles {
    tree: Frontier,
    levels: Vec<Vec<Hash>>,
}

impl Tiles {
    fn of(leaves: &[Vec<u8>]) -> Self {
        let mut tiles = Self::default();
        leaves.iter().for_each(|leaf| tiles.push(leaf));
        tiles
    }

    fn push(&mut self, leaf: &[u8]) {
        for hash in self.tree.push(leaf_hash(leaf)) {
            let level = usize::from(hash.level);
            self.levels.resize(self.levels.len().max(level + 1), Vec::new());
            assert_eq!(hash.number, self.levels[level].len() as u64, "in order");
            self.levels[level].push(hash.hash);
        }
    }
}

impl Levels for Tiles {
    type Error = String;

    fn read(&self, level: u8, first: u64, count: u32) -> Result<Vec<Hash>, String> {
        let first = usize::try_from(first).expect("a small number");
        let hashes = self.levels.get(usize::from(level)).ok_or("no such level")?;
        let read = hashes.get(first..first + count as usize).ok_or("no such hashes")?;
        Ok(read.to_vec())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn leaves(count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_be_bytes().to_vec()).collect()
}

fn oracle(leaves: &[Vec<u8>]) -> MemoryBackedTree<Sha256, Vec<u8>> {
    let mut tree = MemoryBackedTree::new();
    leaves.iter().for_each(|leaf| tree.push(leaf.clone()));
    tree
}

/// Those of RFC 6962's reference implementation.
#[test]
fn roots_are_those_of_certificate_transparency() {
    let inputs = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = Frontier::default();
    assert_eq!(
        hex(&tree.root()),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    for (input, root) in inputs.into_iter().zip(roots) {
        let bytes: Vec<u8> = (0..input.len() / 2)
            .map(|at| u8::from_str_radix(&input[2 * at..2 * at + 2], 16).expect("hexadecimal"))
            .collect();
        drop(tree.push(leaf_hash(&bytes)));
        assert_eq!(hex(&tree.root()), root);
    }
}

/// Over the edges of tiles of two levels.
#[test]
fn roots_and_proofs_are_those_of_another_implementation() {
    let (leaves, mut tiles) = (leaves(66_000), Tiles::default());
    let (before, mut earlier) = ([1_u32, 255, 256, 257, 65_536, 65_537, 65_999], BTreeMap::new());
    for (leaf, size) in leaves.iter().zip(1..) {
        tiles.push(leaf);
        if before.contains(&size) {
            earlier.insert(size, tiles.tree.root());
        }
    }
    assert_eq!(tiles.levels.iter().map(Vec::len).collect::<Vec<_>>(), [66_000, 257, 1]);
    let oracle = oracle(&leaves);
    let (size, root) = (66_000, tiles.tree.root());
    assert_eq!(root, <Hash>::from(*oracle.root().as_bytes()));
    for index in [0_u32, 1, 255, 256, 65_535, 65_536, 65_537, 65_999] {
        let proof = prove_inclusion(&tiles, size, index.into()).expect("a proof");
        assert_eq!(proof.concat(), oracle.prove_inclusion(index as usize).as_bytes());
        let leaf = (index.into(), leaf_hash(&leaves[index as usize]));
        assert_eq!(check_inclusion(&proof, (size, root), leaf), Ok(()));
    }
    for (before, root_before) in earlier {
        let proof = prove_consistency(&tiles, size, before.into()).expect("a proof");
        let oracles = oracle.prove_consistency((66_000 - before) as usize);
        assert_eq!(proof.concat(), oracles.as_bytes());
        assert_eq!(check_consistency(&proof, (size, root), (before.into(), root_before)), Ok(()));
    }
    assert!(prove_inclusion(&tiles, size, size).is_err());
    assert!(prove_consistency(&tiles, size, 0).is_err());
    assert!(prove_inclusion(&tiles, size + 1, 1).is_err(), "hashes that are not there");
}

proptest! {
    #[test]
    fn a_proof_is_refused_as_soon_as_anything_of_it_is_changed(
        count in 2_u32..600, index in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>(),
    ) {
        let leaves = leaves(count);
        let tiles = Tiles::of(&leaves);
        let (tree, index) = ((u64::from(count), tiles.tree.root()), index.index(count as usize));
        let leaf = (index as u64, leaf_hash(&leaves[index]));
        let mut proof = prove_inclusion(&tiles, tree.0, leaf.0).expect("a proof");
        prop_assert_eq!(check_inclusion(&proof, tree, leaf), Ok(()));
        let other = (leaf.0, leaf_hash(b"another"));
        prop_assert!(check_inclusion(&proof, tree, other).is_err());
        prop_assert!(check_inclusion(&proof, (tree.0 + 1_000, tree.1), leaf).is_err());
        let bit = bit.index(proof.len() * 256);
        proof[bit / 256][bit % 256 / 8] ^= 1 << (bit % 8);
        prop_assert!(check_inclusion(&proof, tree, leaf).is_err());
        proof.pop();
        prop_assert!(check_inclusion(&proof, tree, leaf).is_err());
    }

    #[test]
    fn trees_are_consistent_with_their_prefixes_and_with_nothing_else(
        count in 2_u32..600, before in any::<prop::sample::Index>(), changed in any::<prop::sample::Index>(),
    ) {
        let before = 1 + before.index(count as usize - 1);
        let leaves = leaves(count);
        let tiles = Tiles::of(&leaves);
        let tree = (u64::from(count), tiles.tree.root());
        let proof = prove_consistency(&tiles, tree.0, before as u64).expect("a proof");
        let earlier = Tiles::of(&leaves[..before]).tree.root();
        prop_assert_eq!(check_consistency(&proof, tree, (before as u64, earlier)), Ok(()));
        let mut other = leaves[..before].to_vec();
        other[changed.index(before)].push(0);
        let forked = Tiles::of(&other).tree.root();
        prop_assert!(check_consistency(&proof, tree, (before as u64, forked)).is_err());
    }

    #[test]
    fn an_entry_has_one_encoding_and_no_other_bytes_are_it(
        law_id in "[a-z0-9:]{1,50}", oui in any::<bool>(), commitment in any::<[u8; 32]>(),
        place in any::<prop::sample::Index>(), bit in 0..8_u8,
    ) {
        let choice = if oui { Choice::Oui } else { Choice::Non };
        let entry = Entry::Vote(VoteEntry { law_id, choice, commitment });
        let mut bytes = entry.encode().expect("short");
        prop_assert_eq!(Entry::decode(&bytes).expect("an entry"), entry.clone());
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(Entry::decode(&bytes).map_or(true, |other| other != entry));
        prop_assert_ne!(leaf_hash(&bytes), entry.leaf().expect("short"));
    }

    #[test]
    fn a_commitment_changes_with_every_field(
        hash in "[!-~]{1,64}", citizen in "\\PC{1,100}", time in any::<i64>(), recorded in any::<Option<i64>>(),
    ) {
        let secret = Secret::new(&[7; 32]);
        let nonce = secret.nonce(&hash);
        let row = Row {
            vote_hash: hash, citizen_id: citizen, law_id: "law-1".into(), choice: Choice::Oui,
            timestamp: time, recorded_at: recorded.filter(|it| *it != i64::MIN),
        };
        let committed = row.commitment(&nonce).expect("short");
        let others = [
            Row { vote_hash: format!("{}x", row.vote_hash), ..row.clone() },
            // The boundary between two fields moves.
            Row { vote_hash: row.vote_hash.clone(), citizen_id: format!("{}0", row.citizen_id), ..row.clone() },
            Row { timestamp: time ^ 1, ..row.clone() },
            Row { recorded_at: row.recorded_at.map_or(Some(0), |_| None), ..row.clone() },
        ];
        for other in others {
            prop_assert_ne!(other.commitment(&nonce).expect("short"), committed);
        }
        prop_assert_ne!(row.commitment(&Nonce([0; 32])).expect("short"), committed);
    }
}

#[test]
fn entries_of_every_kind_come_back_and_other_spellings_are_refused() {
    let entries = [
        Entry::Correction(Correction {
            id: 1,
            at: "2026-11-29T20:00:00Z".into(),
            law_id: "law-1".into(),
            oui_before: 1,
            non_before: -2,
            oui_after: 3,
            non_after: 4,
            reason: None,
        }),
        Entry::Withdrawal(Withdrawal { index: 3, kind: Withdrawn::Erased, reason: "asked".into() }),
        Entry::Lineage(Lineage {
            system_identifier_before: "7".into(),
            timeline_before: 1,
            system_identifier: "8".into(),
            timeline: 2,
            horizon: "900".into(),
            rows_missing: 0,
        }),
        Entry::Close(Close {
            rows: 3,
            laws: [("law-1".into(), Counts { oui: 1, non: 2 })].into(),
            corrections: 0,
            withdrawals: 0,
        }),
    ];
    for entry in entries {
        let bytes = entry.encode().expect("encoded");
        assert_eq!(Entry::decode(&bytes).expect("an entry"), entry);
        let spaced = String::from_utf8(bytes).expect("text").replacen(':', ": ", 1);
        assert!(Entry::decode(spaced.as_bytes()).is_err(), "{spaced:?}");
    }
    for wrong in [&b""[..], b"\x01", b"\x01\x01a\x02", b"\x07{}", b"\x03{}"] {
        assert!(Entry::decode(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn tiles_have_the_paths_of_c2sp() {
    assert_eq!(tile_path(0, 1_234_067, 256), "tile/0/x001/x234/067");
    assert_eq!(tile_path(1, 5, 44), "tile/1/005.p/44");
    assert_eq!(entries_path(0, 1), "tile/entries/000.p/1");
}

#[test]
fn a_tree_that_is_loaded_from_its_tiles_goes_on_as_it_was() {
    let (leaves, mut tiles, mut roots) = (leaves(65_993), Tiles::default(), BTreeMap::new());
    let sizes = [0_usize, 1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 65_793];
    for size in 0..=leaves.len() {
        if sizes.iter().any(|it| [*it, it + 200].contains(&size)) {
            roots.insert(size, tiles.tree.root());
        }
        leaves.get(size).into_iter().for_each(|leaf| tiles.push(leaf));
    }
    for size in sizes {
        let mut loaded = Frontier::load(&tiles, size as u64).expect("it is there");
        assert_eq!((loaded.size(), loaded.root()), (size as u64, roots[&size]));
        for leaf in &leaves[size..size + 200] {
            drop(loaded.push(leaf_hash(leaf)));
        }
        assert_eq!(loaded.root(), roots[&(size + 200)]);
    }
    assert!(Frontier::load(&tiles, 65_994).is_err(), "a leaf is missing");
}
