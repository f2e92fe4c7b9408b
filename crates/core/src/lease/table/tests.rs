use proptest::prelude::*;

use super::*;

const EPOCH: Epoch = Epoch(7);

fn table() -> LeaseTable {
    LeaseTable::new(LeaseLimits { leases_max: 4, blocks_max: 8, duration_max: Duration::from_secs(60) })
}

fn spec(rank_count: u32) -> LeaseSpec {
    LeaseSpec {
        epoch: EPOCH,
        request_id: "r".to_owned(),
        blocks: vec![vec![BlockIndex(1), BlockIndex(2)]],
        rank_count,
        duration: Duration::from_secs(1),
        binding: b"prompt".to_vec(),
    }
}

fn at(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

fn ended(reason: EndReason) -> Option<LeaseEvent> {
    Some(LeaseEvent::Ended { id: LeaseId(1), epoch: EPOCH, request_id: "r".to_owned(), reason })
}

#[test]
fn ends_when_every_rank_was_read() {
    let mut table = table();
    table.grant(at(0), LeaseId(1), spec(2)).expect("grant");
    table.redeem(at(1), LeaseId(1), EPOCH, Rank(0), WorkId(10)).expect("redeem");
    table.handle_read_ended(WorkId(10));
    assert_eq!(table.poll_event(), None);
    table.redeem(at(2), LeaseId(1), EPOCH, Rank(1), WorkId(11)).expect("redeem");
    table.handle_read_ended(WorkId(11));
    assert_eq!(table.poll_event(), ended(EndReason::Read));
    assert!(table.is_empty() && table.poll_deadline().is_none() && table.reading() == 0);
}

#[test]
fn a_ticket_is_good_once() {
    let mut table = table();
    table.grant(at(0), LeaseId(1), spec(1)).expect("grant");
    table.redeem(at(1), LeaseId(1), EPOCH, Rank(0), WorkId(10)).expect("redeem");
    let again = table.redeem(at(1), LeaseId(1), EPOCH, Rank(0), WorkId(11));
    assert_eq!(again.err(), Some(RedeemError::Redeemed));
    table.handle_read_ended(WorkId(10));
    let after = table.redeem(at(1), LeaseId(1), EPOCH, Rank(0), WorkId(12));
    assert_eq!(after.err(), Some(RedeemError::Unknown));
}

#[test]
fn an_expired_lease_waits_for_its_read_to_be_quiet() {
    let mut table = table();
    table.grant(at(0), LeaseId(1), spec(1)).expect("grant");
    let redeemed = table.redeem(at(1), LeaseId(1), EPOCH, Rank(0), WorkId(10)).expect("redeem");
    assert!(redeemed.gate.is_live(at(999)) && !redeemed.gate.is_live(at(1000)));
    table.handle_timeout(at(999));
    assert_eq!(table.poll_event(), None);
    table.handle_timeout(at(1000));
    assert_eq!(table.poll_event(), Some(LeaseEvent::Quiesce { work: WorkId(10) }));
    assert_eq!(table.poll_event(), None, "the engine must not have its blocks while a read is posted");
    assert!(!redeemed.gate.is_live(at(2)), "the gate is closed before the blocks go back");
    table.handle_read_ended(WorkId(10));
    assert_eq!(table.poll_event(), ended(EndReason::Expired));
}

#[test]
fn refuses_what_it_must() {
    let mut table = table();
    table.grant(at(0), LeaseId(1), spec(1)).expect("grant");
    assert_eq!(table.grant(at(0), LeaseId(1), spec(1)), Err(GrantError::NumberTaken));
    assert_eq!(table.grant(at(0), LeaseId(2), spec(0)), Err(GrantError::Empty));
    let many = LeaseSpec { blocks: vec![vec![BlockIndex(0); 9]], ..spec(1) };
    assert_eq!(table.grant(at(0), LeaseId(2), many), Err(GrantError::Blocks { asked: 9, max: 8 }));
    let long = LeaseSpec { duration: Duration::from_secs(61), ..spec(1) };
    assert!(matches!(table.grant(at(0), LeaseId(2), long), Err(GrantError::Duration { .. })));
    for id in 2..5 {
        table.grant(at(0), LeaseId(id), spec(1)).expect("grant");
    }
    assert_eq!(table.grant(at(0), LeaseId(9), spec(1)), Err(GrantError::Full { max: 4 }));

    let redeem = |table: &mut LeaseTable, ms, id, epoch, rank| {
        table.redeem(at(ms), LeaseId(id), epoch, Rank(rank), WorkId(1)).err()
    };
    assert_eq!(redeem(&mut table, 1, 1, Epoch(8), 0), Some(RedeemError::Epoch));
    assert_eq!(redeem(&mut table, 1, 9, EPOCH, 0), Some(RedeemError::Unknown));
    assert_eq!(redeem(&mut table, 1, 1, EPOCH, 3), Some(RedeemError::Rank));
    assert_eq!(redeem(&mut table, 1000, 1, EPOCH, 0), Some(RedeemError::Ended));
}

#[test]
fn an_engine_that_goes_takes_its_leases() {
    let mut table = table();
    table.grant(at(0), LeaseId(1), spec(1)).expect("grant");
    table.grant(at(0), LeaseId(2), LeaseSpec { epoch: Epoch(8), ..spec(1) }).expect("grant");
    table.end_epoch(EPOCH);
    assert_eq!(table.poll_event(), ended(EndReason::EngineGone));
    assert_eq!(table.poll_event(), None);
    table.relinquish(LeaseId(2), EPOCH);
    assert_eq!(table.len(), 1, "another epoch's ticket ends nothing");
}

proptest! {
    /// Whatever happens in whatever order: each lease ends once, never while a read is posted, and nothing is left.
    #[test]
    fn every_lease_ends_once(steps in proptest::collection::vec((0u8..6, 0u64..4, 0u32..2), 0..200)) {
        let mut table = table();
        let (mut now, mut works, mut ends) = (at(0), 0, 0);
        let mut granted = 0;
        let mut reading: BTreeMap<WorkId, LeaseId> = BTreeMap::new();
        let mut alive = BTreeSet::new();
        let mut drain = |table: &mut LeaseTable, reading: &BTreeMap<WorkId, LeaseId>, alive: &mut BTreeSet<LeaseId>| {
            while let Some(event) = table.poll_event() {
                if let LeaseEvent::Ended { id, .. } = event {
                    assert!(alive.remove(&id), "ended twice or never granted");
                    assert!(!reading.values().any(|lease| *lease == id), "ended while a read was posted");
                    ends += 1;
                }
            }
        };
        for (step, id, rank) in steps {
            let id = LeaseId(id);
            match step {
                0 => if table.grant(now, id, spec(2)).is_ok() { alive.insert(id); granted += 1; },
                1 => {
                    works += 1;
                    if table.redeem(now, id, EPOCH, Rank(rank), WorkId(works)).is_ok() {
                        reading.insert(WorkId(works), id);
                    }
                }
                2 => if let Some((work, _)) = reading.pop_first() { table.handle_read_ended(work); },
                3 => table.relinquish(id, EPOCH),
                4 => { now = now.after(Duration::from_millis(400)); table.handle_timeout(now); }
                _ => if rank == 0 { table.end_epoch(EPOCH); },
            }
            drain(&mut table, &reading, &mut alive);
        }
        table.end_epoch(EPOCH);
        while let Some((work, _)) = reading.pop_first() {
            table.handle_read_ended(work);
            table.handle_read_ended(work);
        }
        drain(&mut table, &reading, &mut alive);
        prop_assert_eq!(ends, granted);
        prop_assert!(table.is_empty() && table.reading() == 0 && table.poll_deadline().is_none());
    }
}
