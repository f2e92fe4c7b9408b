//! Hub: people ask what the tiers hold.
//!
//! ```text
//! CacheQuery -> tier thread, few rows at a time -> Listed -> blocking pool: summed, sorted, cut, JSON -> ListMade -> CacheReply
//! ```
//!
//! Rows are as many as tenants, whom clients of engines name: neither thread that engines wait for looks at all of them at
//! once. One list at a time; who asks meanwhile gets the next one, with all others who did, so that it tells of what was
//! there when they asked. Limits: [`OPERATORS_MAX`] who wait, [`ROWS_MAX`] rows in an answer.

use std::collections::{BTreeSet, HashMap, HashSet};

use kvferry_core::{Fingerprint, Time, WorkId};
use kvferry_proto::v1::{self, from_daemon};
use kvferry_tier::tiers::{SweepFilter, Tier, by_fingerprint};
use kvferry_tier::{Holding, Tenant};

use super::super::cached::{CacheFingerprint, CacheList, CacheRow, CacheSum};
use super::super::command::{Command, SessionId};
use super::super::hub::Hub;
use super::operator::{BUSY, OPERATORS_MAX, filter, no_tier};
use super::thread::TierCommand;

/// Rows that one answer names: with one tenant a user they would be as many as users.
const ROWS_MAX: usize = 10_000;

/// Who asks.
#[derive(Default)]
pub(super) struct Lists {
    /// Until the one that is under way is made.
    waiting: Vec<Question>,
    under_way: Option<(WorkId, Vec<Question>)>,
}

struct Question {
    session: SessionId,
    id: u64,
    filter: SweepFilter,
}

impl Lists {
    /// Nobody waits at this session any more.
    pub(super) fn leave(&mut self, session: SessionId) {
        self.waiting.retain(|question| question.session != session);
    }
}

/// An answer that was made elsewhere.
pub(crate) struct Answer {
    session: SessionId,
    id: u64,
    json: String,
}

/// What the hub knows, and the tiers do not.
struct Known {
    now: Time,
    models: HashMap<Fingerprint, String>,
    attached: HashSet<Fingerprint>,
}

impl Known {
    fn model(&self, fingerprint: &Fingerprint) -> String {
        self.models.get(fingerprint).cloned().unwrap_or_default()
    }
}

impl Hub {
    /// What is stored, by whom. `None`: the answer follows.
    pub(crate) fn list_cache(
        &mut self,
        session: SessionId,
        id: u64,
        query: &v1::CacheQuery,
    ) -> Result<Option<from_daemon::Body>, String> {
        let filter = filter(&query.fingerprints, query.tenant, &query.tier)?;
        let lists = &mut self.tiering.as_mut().ok_or_else(no_tier)?.operators.lists;
        let under_way = lists.under_way.as_ref().map_or(0, |(_, questions)| questions.len());
        if lists.waiting.len() + under_way >= OPERATORS_MAX {
            return Err(BUSY.to_owned());
        }
        lists.waiting.push(Question { session, id, filter });
        self.begin_list();
        Ok(None)
    }

    fn begin_list(&mut self) {
        let work = self.draw_work();
        let Some(tiering) = &mut self.tiering else { return };
        let lists = &mut tiering.operators.lists;
        if lists.under_way.is_some() || lists.waiting.is_empty() {
            return;
        }
        let questions = std::mem::take(&mut lists.waiting);
        if tiering.handle.send(TierCommand::List(work)) {
            lists.under_way = Some((work, questions));
            return;
        }
        for Question { session, id, .. } in questions {
            self.reply(session, id, from_daemon::Body::Problem(v1::Problem { message: BUSY.to_owned() }));
        }
    }

    /// The tiers say what they hold.
    pub(super) fn tell_list(&mut self, work: WorkId, holdings: Vec<(Tier, Holding)>) {
        let workers = self.engines.engines.values().flat_map(|engine| engine.workers.values());
        let attached = workers.map(|worker| worker.fingerprint).collect();
        let Some(operators) = self.tiering.as_mut().map(|tiering| &mut tiering.operators) else { return };
        let known = Known { now: self.clock.now(), models: operators.models.clone(), attached };
        let Some((_, questions)) = operators.lists.under_way.as_mut().filter(|(of, _)| *of == work) else { return };
        let questions = std::mem::take(questions);
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let made = tokio::task::spawn_blocking(move || answers(&known, &holdings, questions));
            // It panicked if this fails, and has said so. The next list begins all the same.
            let answers = made.await.unwrap_or_default();
            if let Some(commands) = commands.upgrade() {
                drop(commands.send(Command::ListMade { answers }).await);
            }
        });
    }

    /// A list is made, and the next one begins.
    pub(crate) fn tell_answers(&mut self, answers: Vec<Answer>) {
        for Answer { session, id, json } in answers {
            self.reply(session, id, from_daemon::Body::Cache(v1::CacheReply { json }));
        }
        if let Some(tiering) = &mut self.tiering {
            tiering.operators.lists.under_way = None;
        }
        self.begin_list();
    }
}

fn answers(known: &Known, holdings: &[(Tier, Holding)], questions: Vec<Question>) -> Vec<Answer> {
    let holdings = by_fingerprint(holdings);
    let answer = |Question { session, id, filter }| {
        let json = serde_json::to_string(&cache_list(known, &holdings, &filter)).unwrap_or_default();
        Answer { session, id, json }
    };
    questions.into_iter().map(answer).collect()
}

fn cache_list(known: &Known, holdings: &[(Tier, Holding)], filter: &SweepFilter) -> CacheList {
    let fits = |(tier, of): &&(Tier, Holding)| filter.is_in(*tier) && filter.fits(of.fingerprint, of.tenant);
    let mut fitting: Vec<_> = holdings.iter().filter(fits).collect();
    fitting.sort_by_key(|(tier, of)| (std::cmp::Reverse(of.bytes), of.fingerprint.0, of.tenant.0, *tier as u8));
    let row = |(tier, of): &&(Tier, Holding)| CacheRow {
        tier: tier.word().to_owned(),
        model: known.model(&of.fingerprint),
        fingerprint: hex(&of.fingerprint),
        attached: known.attached.contains(&of.fingerprint),
        tenant: if of.tenant == Tenant(0) { String::new() } else { format!("{:016x}", of.tenant.0) },
        blocks: of.blocks,
        bytes: of.bytes,
        hits: of.hits,
        used_ms_ago: of.used.map(|used| u64::try_from(known.now.until(used).as_millis()).unwrap_or(u64::MAX)),
    };
    let (named, others) = fitting.split_at(fitting.len().min(ROWS_MAX));
    let fingerprints: BTreeSet<_> = holdings.iter().map(|(_, of)| of.fingerprint.0).collect();
    let name = |of: Fingerprint| CacheFingerprint { fingerprint: hex(&of), model: known.model(&of) };
    CacheList {
        rows: named.iter().map(row).collect(),
        others: CacheSum {
            rows: others.len(),
            blocks: others.iter().map(|(_, of)| of.blocks).sum(),
            bytes: others.iter().map(|(_, of)| of.bytes).sum(),
        },
        fingerprints: fingerprints.into_iter().map(Fingerprint).map(name).collect(),
    }
}

/// All of it, as `--fingerprint` takes it back.
fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(fingerprint: u8, tenant: u64, bytes: u64) -> (Tier, Holding) {
        let (fingerprint, tenant) = (Fingerprint([fingerprint; 32]), Tenant(tenant));
        (Tier::Host, Holding { fingerprint, tenant, blocks: 1, bytes, hits: 0, used: None })
    }

    #[test]
    fn what_is_too_small_to_be_named_is_found_by_who_asks_for_it() {
        let models = HashMap::from([(Fingerprint([8; 32]), "small".to_owned())]);
        let known = Known { now: Time::from_nanos(0), models, attached: HashSet::new() };
        let large = 1..=ROWS_MAX as u64;
        let mut holdings: Vec<_> = large.map(|tenant| holding(7, tenant, 100)).collect();
        holdings.extend([holding(8, 1, 10), holding(8, 0, 1)]);
        let all = cache_list(&known, &holdings, &SweepFilter::default());
        assert_eq!((all.rows.len(), all.rows.iter().filter(|row| row.model == "small").count()), (ROWS_MAX, 0));
        assert_eq!((all.others.rows, all.others.blocks, all.others.bytes), (2, 2, 11));
        let names: Vec<_> = all.fingerprints.iter().map(|of| (of.fingerprint.as_str(), of.model.as_str())).collect();
        assert_eq!(names, [("07".repeat(32).as_str(), ""), ("08".repeat(32).as_str(), "small")]);
        for (filter, rows) in [
            (SweepFilter { fingerprints: vec![Fingerprint([8; 32])], ..Default::default() }, 2),
            (SweepFilter { tenant: Some(Tenant(0)), ..Default::default() }, 1),
            (SweepFilter { tenant: Some(Tenant(1)), tier: Some(Tier::Host), ..Default::default() }, 2),
            (SweepFilter { tier: Some(Tier::Disk), ..Default::default() }, 0),
        ] {
            let list = cache_list(&known, &holdings, &filter);
            assert_eq!((list.rows.len(), list.others.rows, list.fingerprints.len()), (rows, 0, 2), "{filter:?}");
        }
    }
}
