//! Which blocks a command is about, as people say it.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use kvferry_client::{Client, SweepSpec};
use kvferry_tier::Tenant;
use sha2::{Digest as _, Sha256};

use crate::daemon::cached::{CacheFingerprint, CacheList};

/// Digits of a fingerprint that name it, at least.
const FINGERPRINT_DIGITS_MIN: usize = 4;
/// Of those that begin so, as many are said.
const SAID_MAX: usize = 8;
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
    /// What this means. The daemon is asked where its fingerprints have to be known.
    pub(super) fn spec(&self, client: &Client) -> Result<SweepSpec> {
        let known = match (&self.model, &self.fingerprint) {
            (None, None) => Vec::new(),
            _ => listed(client, &SweepSpec::default())?.fingerprints,
        };
        self.among(&known)
    }

    /// What this means, where blocks of these are stored.
    fn among(&self, known: &[CacheFingerprint]) -> Result<SweepSpec> {
        Ok(SweepSpec {
            fingerprints: self.fingerprints(known)?,
            tenant: self.tenant()?,
            tier: self.tier.map(|tier| tier.word().to_owned()),
            everything: false,
        })
    }

    fn fingerprints(&self, known: &[CacheFingerprint]) -> Result<Vec<[u8; 32]>> {
        let mut found: Vec<&str> = match (&self.model, &self.fingerprint) {
            (None, None) => return Ok(Vec::new()),
            (Some(model), _) => known.iter().filter(|of| of.model == *model).map(named).collect(),
            (None, Some(digits)) => {
                let digits = digits.to_ascii_lowercase();
                ensure!(
                    digits.len() >= FINGERPRINT_DIGITS_MIN && digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
                    "a fingerprint is named by {FINGERPRINT_DIGITS_MIN} to 64 hexadecimal digits, not {digits:?}"
                );
                known.iter().map(named).filter(|all| all.starts_with(&digits)).collect()
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
            (count, None) => {
                let more = if count > SAID_MAX { " and others" } else { "" };
                let said = found[..count.min(SAID_MAX)].join(", ");
                bail!("{count} fingerprints begin so; give more digits: {said}{more}")
            }
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

/// What the daemon holds of that.
pub(super) fn listed(client: &Client, spec: &SweepSpec) -> Result<CacheList> {
    serde_json::from_str(&client.cache_list(spec)?).context("read the daemon's answer")
}

fn named(of: &CacheFingerprint) -> &str {
    &of.fingerprint
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

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn known() -> Vec<CacheFingerprint> {
        let of = |(model, first): (&str, u8)| CacheFingerprint {
            fingerprint: hex(&[[first; 1].as_slice(), &[7; 31]].concat()),
            model: model.to_owned(),
        };
        [("llama", 0xab), ("llama", 0xac), ("", 0xad)].map(of).to_vec()
    }

    fn firsts(which: &Which) -> Vec<u8> {
        let spec = which.among(&known()).expect("it means something");
        spec.fingerprints.iter().map(|fingerprint| fingerprint[0]).collect()
    }

    fn of_fingerprint(digits: &str) -> Which {
        Which { fingerprint: Some(digits.to_owned()), ..Default::default() }
    }

    #[test]
    fn what_people_say_means_these_blocks() {
        let which = Which::default();
        assert_eq!(which.among(&known()).expect("all"), SweepSpec::default());
        assert_eq!(firsts(&Which { model: Some("llama".to_owned()), ..which.clone() }), [0xab, 0xac]);
        assert_eq!(firsts(&of_fingerprint("AC07")), [0xac]);
        assert_eq!(firsts(&of_fingerprint(&known()[2].fingerprint)), [0xad]);
        let tenant = |word: &str| Which { tenant_id: Some(word.to_owned()), ..which.clone() }.tenant().expect("one");
        assert_eq!((tenant("none"), tenant("00000000000000ff")), (Some(0), Some(255)));
        let disk = Which { tier: Some(TierName::Disk), ..which };
        assert_eq!(disk.among(&known()).expect("a tier").tier.as_deref(), Some("disk"));
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_to_do() {
        let mut known = known();
        let said = |which: Which, known: &[_]| format!("{:#}", which.among(known).expect_err("it means nothing"));
        assert!(said(of_fingerprint("ab"), &known).contains("4 to 64"));
        assert!(said(of_fingerprint("ffff"), &known).contains("cache ls"));
        let model = Which { model: Some("gpt".to_owned()), ..Default::default() };
        assert!(said(model, &known).contains("--fingerprint"));
        let tenant = Which { tenant_id: Some("ff".to_owned()), ..Default::default() };
        assert!(said(tenant, &known).contains("16 hexadecimal"));
        let first = known[0].fingerprint.clone();
        let alike = |digit: &str| first[..8].to_owned() + &digit.repeat(56);
        known[2].fingerprint = alike("9");
        let text = said(of_fingerprint("ab07"), &known);
        let both = format!("{first}, {}", known[2].fingerprint);
        assert_eq!(text, format!("2 fingerprints begin so; give more digits: {both}"));
        let more =
            ('0'..='9').map(|digit| CacheFingerprint { fingerprint: alike(&digit.to_string()), model: String::new() });
        known.extend(more);
        let text = said(of_fingerprint("ab07"), &known);
        assert!(text.starts_with("11 fingerprints") && text.ends_with(" and others"), "{text}");
        assert_eq!(text.matches("ab07").count(), SAID_MAX, "{text}");
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
