//! Which blocks a command is about, as people say it.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use kvferry_client::SweepSpec;
use kvferry_tier::Tenant;
use sha2::{Digest as _, Sha256};

use crate::daemon::cached::{CacheList, CacheRow};

/// Digits of a fingerprint that name it, at least.
const FINGERPRINT_DIGITS_MIN: usize = 4;
/// How a tenant is named whose blocks are nobody's in particular.
const NOBODY: &str = "none";

/// Which blocks: those that fit everything that is given.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Which {
    /// Of engines that call their model so. Known only of engines that were attached since the daemon's start.
    #[arg(long, value_name = "NAME", conflicts_with = "fingerprint")]
    model: Option<String>,
    /// Of engines of this fingerprint: its hexadecimal digits, or the first few of them.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// Of this tenant: the `cache_salt` of its requests, or the namespace of its engines.
    #[arg(long, value_name = "NAME", conflicts_with = "tenant_id")]
    tenant: Option<String>,
    /// Of this tenant: 16 hexadecimal digits, as `kvferry cache ls` shows them, or "none" for blocks of nobody in particular.
    #[arg(long, value_name = "HEX")]
    tenant_id: Option<String>,
    /// In this tier alone.
    #[arg(long, value_enum)]
    tier: Option<TierName>,
}

/// Where blocks rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TierName {
    Disk,
    Host,
}

impl TierName {
    const fn word(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Host => "host",
        }
    }
}

impl Which {
    /// What this means, where the daemon holds that.
    pub(super) fn spec(&self, list: &CacheList) -> Result<SweepSpec> {
        Ok(SweepSpec {
            fingerprints: self.fingerprints(list)?,
            tenant: self.tenant()?,
            tier: self.tier.map(|tier| tier.word().to_owned()),
            everything: false,
        })
    }

    fn fingerprints(&self, list: &CacheList) -> Result<Vec<[u8; 32]>> {
        let mut found: Vec<&str> = match (&self.model, &self.fingerprint) {
            (None, None) => return Ok(Vec::new()),
            (Some(model), _) => list.rows.iter().filter(|row| row.model == *model).map(named).collect(),
            (None, Some(digits)) => {
                let digits = digits.to_ascii_lowercase();
                ensure!(
                    digits.len() >= FINGERPRINT_DIGITS_MIN && digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
                    "a fingerprint is named by {FINGERPRINT_DIGITS_MIN} to 64 hexadecimal digits, not {digits:?}"
                );
                list.rows.iter().map(named).filter(|all| all.starts_with(&digits)).collect()
            }
        };
        found.sort_unstable();
        found.dedup();
        match (found.len(), &self.model) {
            (0, Some(model)) => bail!(
                "no stored blocks are known to be of model {model:?}; `kvferry cache ls` shows what is there, and \
                 --fingerprint names it while no engine of it has been attached"
            ),
            (0, None) => bail!("no stored blocks are of this fingerprint; `kvferry cache ls` shows what is there"),
            (1, _) | (_, Some(_)) => {}
            (_, None) => bail!("several fingerprints begin so: {}", found.join(", ")),
        }
        found.into_iter().map(bytes).collect()
    }

    fn tenant(&self) -> Result<Option<u64>> {
        match (&self.tenant_id, &self.tenant) {
            (None, None) => Ok(None),
            (Some(word), _) if word == NOBODY => Ok(Some(0)),
            (Some(digits), _) => {
                ensure!(digits.len() == 16, "a tenant's number has 16 hexadecimal digits, or is {NOBODY:?}");
                let number = u64::from_str_radix(digits, 16).context("a tenant's number has 16 hexadecimal digits")?;
                Ok(Some(number))
            }
            (None, Some(name)) if name.is_empty() => Ok(Some(0)),
            // As engines name it (python/kvferry/vllm/hashes.py).
            (None, Some(name)) => Ok(Some(Tenant::named(&Sha256::digest(name)).0)),
        }
    }
}

/// The rows that fit.
pub(super) fn fitting<'a>(list: &'a CacheList, spec: &SweepSpec) -> impl Iterator<Item = &'a CacheRow> {
    let names: Vec<String> = spec.fingerprints.iter().map(|bytes| hex(bytes)).collect();
    let (tenant, tier) = (spec.tenant, spec.tier.clone());
    list.rows.iter().filter(move |row| {
        let of = if row.tenant.is_empty() { Ok(0) } else { u64::from_str_radix(&row.tenant, 16) };
        (names.is_empty() || names.contains(&row.fingerprint))
            && tenant.is_none_or(|tenant| of == Ok(tenant))
            && tier.as_ref().is_none_or(|tier| *tier == row.tier)
    })
}

fn named(row: &CacheRow) -> &str {
    &row.fingerprint
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(digits: &str) -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    ensure!(digits.len() == 64, "the daemon named a fingerprint of {} digits", digits.len());
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> CacheList {
        let row = |model: &str, first: u8, tenant: &str, tier: &str| CacheRow {
            model: model.to_owned(),
            fingerprint: hex(&[[first; 1].as_slice(), &[7; 31]].concat()),
            tenant: tenant.to_owned(),
            tier: tier.to_owned(),
            ..Default::default()
        };
        let rows = vec![
            row("llama", 0xab, "", "host"),
            row("llama", 0xac, "00000000000000ff", "host"),
            row("llama", 0xac, "00000000000000ff", "disk"),
            row("", 0xad, "", "disk"),
        ];
        CacheList { rows, ..Default::default() }
    }

    fn count(which: &Which) -> usize {
        let list = list();
        let spec = which.spec(&list).expect("it means something");
        fitting(&list, &spec).count()
    }

    #[test]
    fn what_people_say_means_these_rows() {
        let which = Which::default();
        assert_eq!(count(&which), 4);
        assert_eq!(count(&Which { model: Some("llama".to_owned()), ..which.clone() }), 3);
        assert_eq!(count(&of_fingerprint("AC07")), 2);
        assert_eq!(count(&of_fingerprint(&list().rows[3].fingerprint)), 1);
        assert_eq!(count(&Which { tenant_id: Some("none".to_owned()), ..which.clone() }), 2);
        assert_eq!(count(&Which { tenant_id: Some("00000000000000ff".to_owned()), ..which.clone() }), 2);
        assert_eq!(count(&Which { tier: Some(TierName::Disk), ..which.clone() }), 2);
        let both = Which { model: Some("llama".to_owned()), tier: Some(TierName::Disk), ..which };
        assert_eq!(count(&both), 1);
    }

    fn of_fingerprint(digits: &str) -> Which {
        Which { fingerprint: Some(digits.to_owned()), ..Default::default() }
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_to_do() {
        let said = |which: Which, list: &CacheList| format!("{:#}", which.spec(list).expect_err("it means nothing"));
        let mut list = list();
        assert!(said(of_fingerprint("ab"), &list).contains("4 to 64"));
        assert!(said(of_fingerprint("ffff"), &list).contains("cache ls"));
        let model = Which { model: Some("gpt".to_owned()), ..Default::default() };
        assert!(said(model, &list).contains("--fingerprint"));
        let tenant = Which { tenant_id: Some("ff".to_owned()), ..Default::default() };
        assert!(said(tenant, &list).contains("16 hexadecimal"));
        list.rows[3].fingerprint = list.rows[0].fingerprint[..8].to_owned() + &"9".repeat(56);
        assert!(said(of_fingerprint("ab07"), &list).contains("several"));
    }

    /// `hashlib.sha256(b"alice").digest()`, as the connector names the tenant of this salt.
    #[test]
    fn a_name_is_the_tenant_that_engines_name() {
        let which = Which { tenant: Some("alice".to_owned()), ..Default::default() };
        let digest: [u8; 32] = Sha256::digest(b"alice").into();
        assert_eq!(hex(&digest[..8]), "2bd806c97f0e00af");
        assert_eq!(which.tenant().expect("a name"), Some(Tenant::named(&digest).0));
        let nobody = Which { tenant: Some(String::new()), ..Default::default() };
        assert_eq!(nobody.tenant().expect("no name"), Some(0));
    }
}
