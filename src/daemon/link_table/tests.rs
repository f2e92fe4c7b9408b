use super::*;

const MS: Duration = Duration::from_millis(1);
const LIMITS: LinkLimits = LinkLimits {
    links_max: 3,
    retry_min: Duration::from_millis(10),
    retry_max: Duration::from_millis(1000),
    idle_max: Duration::from_secs(60),
};
const A: &str = "a:1";

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

fn table() -> LinkTable<()> {
    LinkTable::new(LIMITS)
}

fn open(address: &str) -> Option<LinkAction> {
    Some(LinkAction::Open(address.to_owned()))
}

fn idle(address: &str) -> Option<LinkAction> {
    Some(LinkAction::Idle(address.to_owned()))
}

fn state(table: &LinkTable<()>, address: &str) -> &'static str {
    table.iter().find(|link| link.address == address).map_or("unknown", |link| link.state)
}

/// A link to [`A`] that stands since `ms`, to the peer's life 7, over the endpoint 1.
fn standing(origin: Origin, ms: u64) -> LinkTable<()> {
    let mut table = table();
    assert!(table.learn(at(ms), A, origin, None));
    assert_eq!(table.poll(at(ms)), open(A));
    assert_eq!(table.handle_opened(at(ms), A, (), EndpointId(1), 7), Opening::Connect { replaces: None });
    assert_eq!(table.handle_up(at(ms), EndpointId(1)), Some((A.to_owned(), vec![])));
    table
}

#[test]
fn a_peer_is_called_when_it_is_learnt_and_a_transfer_finds_the_link() {
    let mut table = standing(Origin::Configured, 0);
    assert_eq!(table.poll(at(1)), None);
    assert_eq!(table.want(at(1), A, WorkId(1)), Found::Up);
    assert_eq!(table.up(A).map(|(_, endpoint)| endpoint), Some(EndpointId(1)));
    assert_eq!(table.poll_deadline(), None, "a configured peer's standing link never wakes anybody");
}

#[test]
fn waits_double_with_jitter_and_have_a_bound() {
    for (dice, share) in [(0, 2), (u64::MAX, 1)] {
        let mut table = table();
        table.learn(at(0), A, Origin::Configured, None);
        let (mut now, mut wait) = (at(0), LIMITS.retry_min);
        for tries in 1..20 {
            assert_eq!(table.poll(now), open(A));
            assert_eq!(table.poll(now), None, "one try at a time");
            assert_eq!(table.handle_failed(now, A, "refused", dice), vec![]);
            let due = table.poll_deadline().expect("another try");
            let waited = due.until(now);
            assert!(waited >= wait / share - MS && waited <= wait / share, "{waited:?} of {wait:?}");
            assert_eq!(table.poll(now), None);
            assert_eq!(
                table.iter().next().map(|link| (link.tries, link.fault.to_owned())),
                Some((tries, "refused".to_owned()))
            );
            (now, wait) = (due, (wait * 2).min(LIMITS.retry_max));
        }
    }
}

#[test]
fn a_sign_of_life_ends_the_wait() {
    let mut table = table();
    table.learn(at(0), A, Origin::Configured, None);
    for now in [0, 1] {
        assert_eq!(table.poll(at(now)), open(A));
        table.handle_failed(at(now), A, "refused", u64::MAX);
        assert_eq!(table.poll(at(now)), None);
        // It calls us, a ticket names it.
        table.learn(at(now + 1), A, Origin::Learnt, Some(9));
    }
    assert_eq!(table.poll(at(2)), open(A));
    // It shows itself after the try began: that one may have come too early.
    table.learn(at(3), A, Origin::Learnt, Some(9));
    table.handle_failed(at(4), A, "refused", u64::MAX);
    assert_eq!(table.poll(at(4)), open(A));
    table.handle_failed(at(5), A, "refused", u64::MAX);
    assert_eq!(table.poll(at(5)), None, "once");
}

#[test]
fn a_transfer_waits_for_two_tries_at_most() {
    let mut table = table();
    assert_eq!(table.want(at(0), A, WorkId(1)), Found::Waits);
    assert_eq!(table.poll(at(0)), open(A));
    assert_eq!(table.want(at(1), A, WorkId(2)), Found::Waits);
    assert_eq!(table.handle_failed(at(2), A, "refused", 0), [WorkId(1)]);
    assert_eq!(table.poll(at(2)), open(A), "at once, for the one that came later");
    table.handle_opened(at(3), A, (), EndpointId(1), 7);
    assert_eq!(table.want(at(3), A, WorkId(3)), Found::Waits);
    let down = table.handle_down(at(4), EndpointId(1), Fault::Deadline, 0);
    assert_eq!(down, Some((A.to_owned(), vec![WorkId(2)])));
    assert_eq!(table.poll(at(4)), open(A));
    table.handle_opened(at(5), A, (), EndpointId(2), 7);
    assert_eq!(table.want(at(5), A, WorkId(4)), Found::Waits);
    assert_eq!(table.handle_up(at(6), EndpointId(2)), Some((A.to_owned(), vec![WorkId(3), WorkId(4)])));
    assert_eq!(table.handle_down(at(7), EndpointId(1), Fault::Deadline, 0), None, "an endpoint that was given up");
}

#[test]
fn a_link_that_breaks_again_and_again_is_not_hammered() {
    let mut table = standing(Origin::Configured, 0);
    let mut now = at(1);
    for round in 0..10 {
        let endpoint = EndpointId(round + 1);
        table.handle_down(now, endpoint, Fault::PeerClosed, u64::MAX).expect("a link");
        assert_eq!(table.poll(now), None, "round {round}");
        now = table.poll_deadline().expect("another try");
        assert_eq!(table.poll(now), open(A));
        table.handle_opened(now, A, (), EndpointId(round + 2), 7);
        table.handle_up(now, EndpointId(round + 2)).expect("a link");
    }
    assert!(now >= at(3_000), "{now:?}");
    // After a quiet while it starts from the beginning.
    let later = now.after(LIMITS.retry_max);
    table.handle_down(later, EndpointId(11), Fault::PeerClosed, u64::MAX).expect("a link");
    assert!(table.poll_deadline().expect("another try").until(later) <= LIMITS.retry_min);
}

#[test]
fn another_life_of_the_peer_replaces_the_link_only_by_its_own_word() {
    let mut table = standing(Origin::Configured, 0);
    table.learn(at(1), A, Origin::Learnt, Some(7));
    assert_eq!(table.poll(at(1)), None, "the same life");
    table.learn(at(2), A, Origin::Learnt, Some(8));
    table.learn(at(2), A, Origin::Learnt, None);
    assert_eq!(table.poll(at(2)), open(A));
    // Somebody lied.
    assert_eq!(table.handle_opened(at(3), A, (), EndpointId(2), 7), Opening::Ignore);
    assert_eq!((table.up(A).map(|(_, endpoint)| endpoint), table.poll(at(3))), (Some(EndpointId(1)), None));
    // Nobody lied.
    table.learn(at(4), A, Origin::Learnt, Some(8));
    assert_eq!(table.poll(at(4)), open(A));
    let replaces = Some(EndpointId(1));
    assert_eq!(table.handle_opened(at(5), A, (), EndpointId(3), 8), Opening::Connect { replaces });
    assert!(table.up(A).is_none(), "no transfer goes to the life that ended");
    assert_eq!(table.handle_down(at(5), EndpointId(1), Fault::Cancelled, 0), None);
    table.handle_up(at(6), EndpointId(3)).expect("a link");
    assert_eq!(table.iter().next().map(|link| link.epoch), Some(8));
}

#[test]
fn what_nothing_wants_is_forgotten_unless_it_is_configured() {
    let mut table = standing(Origin::Learnt, 0);
    table.learn(at(0), "b:1", Origin::Configured, None);
    assert_eq!(table.poll(at(0)), open("b:1"));
    assert_eq!(table.want(at(30_000), A, WorkId(1)), Found::Up);
    assert_eq!(table.poll(at(89_999)), None);
    assert_eq!(table.poll_deadline(), Some(at(90_000)));
    assert_eq!(table.poll(at(90_000)), idle(A));
    table.touch(at(90_000), A);
    assert_eq!(table.poll(at(149_999)), None);
    assert_eq!(table.poll(at(150_000)), idle(A));
    assert_eq!(table.forget(A), Some(EndpointId(1)));
    assert_eq!((table.poll(at(1_000_000)), state(&table, "b:1")), (None, "opening"));
    // One that never answered, too; until then it is tried.
    table.learn(at(0), A, Origin::Learnt, None);
    for now in 0..60_000 {
        if let Some(action) = table.poll(at(now)) {
            assert_eq!(Some(action), open(A));
            table.handle_failed(at(now), A, "refused", 0);
        }
    }
    assert_eq!(table.poll(at(60_001)), idle(A));
}

#[test]
fn at_the_limit_only_what_is_down_and_learnt_makes_room() {
    let mut table = standing(Origin::Learnt, 0);
    table.learn(at(0), "b:1", Origin::Configured, None);
    table.learn(at(1), "c:1", Origin::Learnt, None);
    assert!(!table.learn(at(2), "d:1", Origin::Learnt, None), "whoever calls us moves nobody");
    assert_eq!(table.want(at(2), "d:1", WorkId(1)), Found::Waits, "in the place of c");
    assert_eq!(state(&table, "c:1"), "unknown");
    assert_eq!(table.want(at(2), "e:1", WorkId(2)), Found::Full, "d is waited for");
    assert_eq!(table.iter().count(), 3);
}

#[test]
fn a_peer_that_must_not_be_called_is_kept_only_if_it_is_configured() {
    let mut table = table();
    table.learn(at(0), "b:1", Origin::Configured, None);
    for (address, work) in [(A, 1), ("b:1", 3)] {
        assert_eq!(table.want(at(0), address, WorkId(work)), Found::Waits);
    }
    while table.poll(at(0)).is_some() {}
    for (address, work) in [(A, 2), ("b:1", 4)] {
        assert_eq!(table.want(at(0), address, WorkId(work)), Found::Waits);
        let refused = table.handle_forbidden(at(1), address, "not among peer.allow");
        assert_eq!(refused, [WorkId(work - 1), WorkId(work)]);
    }
    assert_eq!((state(&table, A), state(&table, "b:1")), ("unknown", "down"));
    assert_eq!(table.poll_deadline(), Some(at(1001)));
}

#[test]
fn an_endpoint_that_breaks_while_the_peer_is_asked_anew_comes_back_with_the_answer() {
    let mut table = standing(Origin::Configured, 0);
    table.learn(at(1), A, Origin::Learnt, Some(8));
    assert_eq!(table.poll(at(1)), open(A));
    table.handle_down(at(2), EndpointId(1), Fault::PeerClosed, 0).expect("a link");
    assert_eq!(table.want(at(2), A, WorkId(1)), Found::Waits);
    assert_eq!(table.poll(at(3_000)), None, "one call at a time");
    assert_eq!(table.handle_opened(at(3_000), A, (), EndpointId(2), 8), Opening::Connect { replaces: None });
    assert_eq!(table.handle_up(at(3_000), EndpointId(2)), Some((A.to_owned(), vec![WorkId(1)])));
}
