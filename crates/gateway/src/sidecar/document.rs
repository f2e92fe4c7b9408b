//! The JSON body of a request, as far as the sidecar looks into it: the names of its top-level fields. Values stay the
//! bytes that the client sent, so that a rewritten body differs from the original in the named fields alone (no number
//! is rounded, no string re-escaped, however long the prompt).

use std::fmt;

use axum::http::uri::PathAndQuery;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The field that carries a ticket between the phases.
pub(crate) const PARAMS: &str = "kv_transfer_params";

/// The requests that are done in two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

impl Api {
    /// The two-phase API that `target` names, if it is one.
    pub(crate) fn of(target: &PathAndQuery) -> Option<Self> {
        match target.path() {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            _ => None,
        }
    }
}

/// A JSON object: its fields in the client's order, duplicates included.
#[derive(Debug)]
pub(crate) struct Document<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Document<'a> {
    /// Reads `body`. `None`: there is no object in it, so nothing that the sidecar could act on.
    pub(crate) fn parse(body: &'a [u8]) -> serde_json::Result<Option<Self>> {
        match body.trim_ascii_start().first() {
            None => Ok(None),
            Some(b'{') => serde_json::from_slice(body).map(Some),
            // Still read to its end: an engine may take other encodings of JSON, which would hide an object.
            Some(_) => serde_json::from_slice::<IgnoredAny>(body).map(|_| None),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The body of the prefill phase: one token, in one piece (only those responses carry the ticket), with the request
    /// to keep the blocks for a decode elsewhere.
    pub(crate) fn to_prefill(&self, api: Api) -> Vec<u8> {
        let mut fields: Vec<(&str, Field<'a>)> = Vec::with_capacity(self.0.len() + 4);
        for (name, value) in &self.0 {
            match name.as_str() {
                PARAMS | "max_completion_tokens" | "max_tokens" | "stream" | "stream_options" => {}
                // More than the one token asked for would be an error of ours.
                "min_tokens" if !matches!(value.get(), "0" | "1") => {}
                name => fields.push((name, Field::Given(value))),
            }
        }
        fields.push(("stream", Field::Set(json!(false))));
        fields.push(("max_tokens", Field::Set(json!(1))));
        // vLLM's chat prefers it over max_tokens; the completions API does not know it, so it is set only where sent.
        if api == Api::Chat || self.has("max_completion_tokens") {
            fields.push(("max_completion_tokens", Field::Set(json!(1))));
        }
        let keep = json!({
            "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
            "remote_block_ids": null, "remote_host": null, "remote_port": null,
        });
        fields.push((PARAMS, Field::Set(keep)));
        Object(fields).to_bytes()
    }

    /// The body of the decode phase: the client's own, with `ticket` in place of whatever it said itself.
    pub(crate) fn to_decode(&self, ticket: Option<&'a RawValue>) -> Vec<u8> {
        let own = self.0.iter().filter(|(name, _)| name != PARAMS);
        let fields = own.map(|(name, value)| (name.as_str(), Field::Given(value)));
        Object(fields.chain(ticket.map(|ticket| (PARAMS, Field::Given(ticket)))).collect()).to_bytes()
    }
}

impl<'de> Deserialize<'de> for Document<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Document<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Document(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// A value as the client sent it, or one of the sidecar's.
enum Field<'a> {
    Given(&'a RawValue),
    Set(Value),
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Given(raw) => raw.serialize(serializer),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

struct Object<'a, 'n>(Vec<(&'n str, Field<'a>)>);

impl Object<'_, '_> {
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names are strings and values are JSON already")
    }
}

impl Serialize for Object<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(body: &str) -> Document<'_> {
        Document::parse(body.as_bytes()).unwrap().unwrap()
    }

    fn prefill(body: &str, api: Api) -> Value {
        serde_json::from_slice(&document(body).to_prefill(api)).unwrap()
    }

    #[test]
    fn values_keep_their_bytes() {
        let body = r#"{"seed":123456789012345678901234567890,"temperature":0.70,"prompt":"\u00e9\/ "}"#;
        assert_eq!(document(body).to_decode(None), body.as_bytes());
        let with = document(body).to_decode(Some(serde_json::from_str(r#"{ "b":1.0 }"#).unwrap()));
        assert_eq!(with, [&body[..body.len() - 1], r#","kv_transfer_params":{ "b":1.0 }}"#].concat().as_bytes());
    }

    #[test]
    fn every_spelling_of_the_params_is_removed() {
        let body = r#"{"kv_transfer_params":{"a":1},"kv_transfer_param\u0073":2,"n":1,"kv_transfer_params":null}"#;
        assert!(document(body).has(PARAMS));
        assert_eq!(document(body).to_decode(None), br#"{"n":1}"#);
    }

    #[test]
    fn prefill_asks_for_one_token_in_one_piece() {
        let body = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":99,"n":2}"#;
        let keep = json!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
                          "remote_block_ids": null, "remote_host": null, "remote_port": null});
        let mut expected = json!({"model": "m", "n": 2, "stream": false, "max_tokens": 1, "kv_transfer_params": keep});
        assert_eq!(prefill(body, Api::Completions), expected);
        expected["max_completion_tokens"] = json!(1);
        assert_eq!(prefill(body, Api::Chat), expected);
        assert_eq!(prefill(r#"{"max_completion_tokens":7}"#, Api::Completions)["max_completion_tokens"], 1);
    }

    #[test]
    fn prefill_drops_min_tokens_above_one() {
        for (sent, kept) in [("0", true), ("1", true), ("2", false), ("\"5\"", false), ("1.0", false), ("null", false)]
        {
            let body = prefill(&format!(r#"{{"min_tokens":{sent}}}"#), Api::Chat);
            assert_eq!(body.get("min_tokens").is_some(), kept, "{sent}");
        }
    }

    #[test]
    fn only_objects_are_documents_and_only_json_passes() {
        for body in ["", " \n", "[1]", "\"x\"", "null", "7"] {
            assert!(Document::parse(body.as_bytes()).unwrap().is_none(), "{body:?}");
        }
        let utf16: Vec<u8> = r#"{"a":1}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let wrong: [&[u8]; 8] =
            [b"{", b"{\"a\":NaN}", b"{} {}", b"[1", b"\xef\xbb\xbf{}", b"{\"\xff\":1}", b"{\"a\":\"\xff\"}", &utf16];
        for body in wrong {
            assert!(Document::parse(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(document(&deep).to_decode(None), deep.as_bytes());
    }
}
