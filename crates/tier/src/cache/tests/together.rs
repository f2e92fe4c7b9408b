//! A block that several bring at once: it counts once, and until the last of them gives up.

use super::*;
use crate::twin::{self, Twin};

const BYTES: u64 = 1000;
/// Blocks that each tenant may have.
const QUOTA: u64 = 6;
/// Blocks that the store has room for: less than all tenants may have.
const ROOM: u64 = 14;
const TENANTS: u64 = 3;
const CHAINS: u64 = 4;
const LENGTH: u64 = 6;

/// Blocks that a list tells of.
fn listed(cache: &Cache<Twin>) -> u64 {
    let (mut blocks, mut next) = (0, Some(0));
    while let Some(from) = next {
        next = cache.holdings_piece(from, |holding| blocks += holding.blocks);
    }
    blocks
}

fn twin() -> (Cache<Twin>, ClassId) {
    let limits = CacheLimits { tenant_bytes_max: QUOTA * BYTES, ..LIMITS };
    let mut cache = Cache::new(Twin::new(ROOM * BYTES), limits, at(0));
    let class = cache.class(Fingerprint([1; 32]), 0, BYTES).expect("a class");
    (cache, class)
}

fn seal(cache: &mut Cache<Twin>, filling: twin::Filling, parent: Option<BlockHash>) -> bool {
    cache.seal(filling, crc32c::crc32c(&[0; 1000]), parent)
}

#[test]
fn who_brings_the_same_block_keeps_its_room_when_the_other_gives_up() {
    let (mut cache, class) = twin();
    let (tenant, shared) = (Tenant(1), hash(0));
    cache.request(at(0), class, &[shared, hash(1)]);
    let one = cache.admit(at(0), class, shared, None, tenant).expect("room");
    let two = cache.admit(at(0), class, shared, None, tenant).expect("room");
    assert_eq!(cache.held_by(tenant), BYTES, "one block");
    cache.abandon(one);
    assert_eq!(cache.held_by(tenant), BYTES, "it is on its way yet");
    let child = cache.admit(at(0), class, hash(1), Some(shared), tenant).expect("its parent is on its way yet");
    let mut others = Vec::new();
    for other in 100.. {
        cache.request(at(1), class, &[hash(other)]);
        match cache.admit(at(1), class, hash(other), None, tenant) {
            Ok(filling) => others.push(filling),
            Err(refused) => {
                assert_eq!(refused, NotAdmitted::Quota);
                break;
            }
        }
    }
    assert_eq!(others.len() as u64, QUOTA - 2);
    assert!(seal(&mut cache, two, None) && seal(&mut cache, child, Some(shared)));
    others.into_iter().for_each(|filling| assert!(seal(&mut cache, filling, None)));
    assert_eq!((cache.held_by(tenant), cache.blocks() as u64), (QUOTA * BYTES, QUOTA));
}

#[test]
fn what_goes_while_it_is_brought_again_is_there_again() {
    let (mut cache, class) = twin();
    let (tenant, shared) = (Tenant(1), hash(0));
    cache.request(at(0), class, &[shared]);
    let one = cache.admit(at(0), class, shared, None, tenant).expect("room");
    let two = cache.admit(at(0), class, shared, None, tenant).expect("room");
    assert!(seal(&mut cache, one, None));
    assert!(cache.remove(class, &shared, Left::Asked));
    assert_eq!((cache.blocks(), cache.held_by(tenant), listed(&cache)), (0, BYTES, 0));
    assert!(seal(&mut cache, two, None));
    assert_eq!((cache.blocks(), cache.held_by(tenant), listed(&cache)), (1, BYTES, 1));
    assert!(cache.remove(class, &shared, Left::Asked));
    assert_eq!((cache.blocks(), cache.held_by(tenant), cache.eviction.stored()), (0, 0, 0));
}

/// The block of a tenant's chain.
fn name(tenant: u64, chain: u64, place: u64) -> BlockHash {
    hash(tenant * 10_000 + chain * 100 + place)
}

#[test]
fn any_order_of_steps_counts_what_is_there_or_on_its_way_once_and_within_its_quota() {
    let mut random = fastrand::Rng::with_seed(5);
    let (mut cache, class) = twin();
    let (mut open, mut held) = (Vec::<(twin::Filling, Option<BlockHash>)>::new(), Vec::new());
    let (mut sealed, mut refused, mut twice) = (0, 0, 0);
    for step in 0..40_000 {
        let (tenant, chain) = (random.u64(0..TENANTS), random.u64(0..CHAINS));
        let place = random.u64(0..LENGTH);
        let of = name(tenant, chain, place);
        match random.u32(0..100) {
            0..55 if open.len() < 12 => {
                let blocks: Vec<_> = (0..=place).map(|place| name(tenant, chain, place)).collect();
                cache.request(at(step), class, &blocks);
                let parent = place.checked_sub(1).map(|before| name(tenant, chain, before));
                match cache.admit(at(step), class, of, parent, Tenant(tenant)) {
                    Ok(filling) => {
                        twice += u32::from(open.iter().any(|(other, _)| other.hash() == of));
                        open.push((filling, parent));
                    }
                    Err(NotAdmitted::Quota | NotAdmitted::WorthLess) => refused += 1,
                    Err(_) => {}
                }
            }
            0..75 if !open.is_empty() => {
                let (filling, parent) = open.swap_remove(random.usize(..open.len()));
                sealed += u32::from(seal(&mut cache, filling, parent));
            }
            75..90 if !open.is_empty() => cache.abandon(open.swap_remove(random.usize(..open.len())).0),
            90..93 => {
                cache.remove(class, &of, Left::Asked);
            }
            93..96 if held.len() < 8 => held.extend(cache.pin(class, &of)),
            96.. if !held.is_empty() => {
                cache.unpin(&held.swap_remove(random.usize(..held.len())));
            }
            _ => {}
        }
        let mut all = 0;
        for tenant in 0..TENANTS {
            let names = (0..CHAINS).flat_map(|chain| (0..LENGTH).map(move |place| name(tenant, chain, place)));
            let is_counted =
                |of: &BlockHash| cache.contains(class, of) || open.iter().any(|(filling, _)| filling.hash() == *of);
            let count = names.filter(is_counted).count() as u64;
            assert_eq!(cache.held_by(Tenant(tenant)), count * BYTES, "step {step}");
            assert!(count <= QUOTA, "step {step}: tenant {tenant} has {count}");
            all += count;
        }
        assert_eq!(cache.eviction.stored() as u64, all, "step {step}");
        assert_eq!(listed(&cache), cache.blocks() as u64, "step {step}");
    }
    assert!(sealed > 1000 && refused > 20 && twice > 100, "{sealed} {refused} {twice}");
}
