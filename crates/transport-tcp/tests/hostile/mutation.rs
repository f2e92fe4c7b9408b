//! A good holder's bytes with damage in them: whatever the damage, the read ends once, and `Ok` means the right bytes.

use kvferry_core::WorkId;
use kvferry_transport_tcp::Settings;
use kvferry_transport_tcp::frame::Outcome;
use proptest::prelude::*;

use crate::stage::{ENDPOINT, Stage, content, piece, region, trailer, whole};

const WORK: WorkId = WorkId(5);
const BYTES: u32 = 3000;

#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Flip(usize, u8),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Repeat(usize, usize),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match self {
            Self::Cut(at) => bytes.truncate(at % length),
            Self::Flip(at, with) => bytes[at % length] ^= with,
            Self::Insert(at, what) => {
                let at = at % length;
                bytes.splice(at..at, what.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at..(at + count).min(length));
            }
            Self::Repeat(at, count) => {
                let at = at % length;
                let part = bytes[at..(at + count).min(length)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0_usize..10_000;
    prop_oneof![
        at.clone().prop_map(Damage::Cut),
        (at.clone(), 1_u8..=255).prop_map(|(at, with)| Damage::Flip(at, with)),
        (at.clone(), prop::collection::vec(any::<u8>(), 1..100)).prop_map(|(at, what)| Damage::Insert(at, what)),
        (at.clone(), 1_usize..200).prop_map(|(at, count)| Damage::Remove(at, count)),
        (at, 1_usize..200).prop_map(|(at, count)| Damage::Repeat(at, count)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_end_once_and_never_well(damage in damage(), cut in 1_usize..3000, burst in 1_usize..5000) {
        let mut stage = Stage::new(&Settings::default());
        let (plan, target) = (whole(BYTES), region(BYTES, 0));
        let mut socket = stage.play_holder(ENDPOINT);
        let tag = stage.read_work(&mut socket, WORK, &plan, &target);
        let payload: Vec<u8> = (0..BYTES).map(|byte| (byte % 251).to_le_bytes()[0]).collect();
        let cut = cut.min(payload.len() - 1);
        let mut good = piece(WORK, tag, 0, &payload[..cut]);
        good.extend(piece(WORK, tag, 1, &payload[cut..]));
        good.extend(trailer(WORK, tag, &plan, Outcome::Live));
        let mut bytes = good.clone();
        damage.apply(&mut bytes);
        for part in bytes.chunks(burst) {
            stage.write(&mut socket, part);
            stage.settle();
        }
        drop(socket);
        if let Ok(moved) = stage.result(WORK) {
            // Only damage behind the trailer, or none at all (a byte repeated beside itself).
            prop_assert!(bytes.starts_with(&good), "{:?}", damage);
            prop_assert_eq!(moved, u64::from(BYTES));
            prop_assert_eq!(content(&target), payload);
        }
        stage.down(ENDPOINT);
    }
}
