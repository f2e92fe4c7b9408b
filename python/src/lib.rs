//! The native half of the wheel: the client of the local daemon, as Python sees it.
//!
//! ```text
//! kvferry.native -> _native.Client -> kvferry_client::Client -> daemon
//! ```
//!
//! Plain values go in and plain tuples come out; their meaning is `kvferry_client`'s, their types are
//! `kvferry/client.py`'s. Nothing is called with Python's lock held, so a call that waits holds up its caller alone.
//! After `close` every call fails as if there were no daemon.
#![forbid(unsafe_code)]

use pyo3::prelude::*;

/// `kvferry._native`.
#[pymodule(name = "_native")]
mod native {
    use std::fs::OpenOptions;
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use kvferry_client::{
        AttachSpec, BlockHash, ClientConfig, ClientError, Event, GroupLayout, LayerSpan, Layout, LoadedBlocks, Role,
        StoredBlocks, WantedBlocks,
    };
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::pybacked::PyBackedBytes;

    pyo3::import_exception!(kvferry.client, RefusedError);
    pyo3::import_exception!(kvferry.client, UnavailableError);

    /// The fields of a [`LayerSpan`], in order.
    type SpanFields = (u32, u64, u64, u64, u32, u32, u32);

    /// A connection to the daemon of this node, which repairs itself.
    #[pyclass(frozen)]
    struct Client {
        /// `None` once closed.
        open: Mutex<Option<Arc<kvferry_client::Client>>>,
    }

    impl Client {
        fn client(&self) -> Option<Arc<kvferry_client::Client>> {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }

        fn open_client(&self) -> PyResult<Arc<kvferry_client::Client>> {
            self.client().ok_or_else(|| UnavailableError::new_err("the client is closed"))
        }
    }

    #[pymethods]
    impl Client {
        #[new]
        fn new(socket: PathBuf, engine_id: String, role: &str, reply_timeout_ms: u64) -> PyResult<Self> {
            let role = match role {
                "scheduler" => Role::Scheduler,
                "worker" => Role::Worker,
                _ => return Err(PyValueError::new_err(format!("role is scheduler or worker, not {role:?}"))),
            };
            let reply_timeout = Duration::from_millis(reply_timeout_ms);
            let client = kvferry_client::Client::start(ClientConfig { socket, engine_id, role, reply_timeout })?;
            Ok(Self { open: Mutex::new(Some(Arc::new(client))) })
        }

        fn is_connected(&self, py: Python<'_>) -> bool {
            py.detach(|| self.client().is_some_and(|client| client.is_connected()))
        }

        #[expect(clippy::too_many_arguments, reason = "called from one place, kvferry/native.py, with a spec's fields")]
        #[pyo3(signature = (
            rank, rank_count, fingerprint, region_fd, order, block_count, region_bytes, groups, model = String::new()
        ))]
        fn attach(
            &self,
            py: Python<'_>,
            rank: u32,
            rank_count: u32,
            fingerprint: [u8; 32],
            region_fd: i32,
            order: String,
            block_count: u32,
            region_bytes: u64,
            groups: Vec<Vec<SpanFields>>,
            model: String,
        ) -> PyResult<()> {
            let client = self.open_client()?;
            let groups = groups.into_iter().map(|spans| GroupLayout { spans: spans.into_iter().map(span).collect() });
            let layout = Layout { order, block_count, region_bytes, groups: groups.collect() };
            // Opens the memfd anew, so that this one lives as long as the client wants it. A number from Python cannot
            // be duplicated without unsafe code; its name in /proc can be opened.
            let path = format!("/proc/self/fd/{region_fd}");
            let region: OwnedFd = OpenOptions::new().read(true).write(true).open(path)?.into();
            let region = Arc::new(region);
            py.detach(|| client.attach(AttachSpec { rank, rank_count, fingerprint, layout, region, model }));
            Ok(())
        }

        fn grant(
            &self,
            py: Python<'_>,
            request_id: &str,
            groups: Vec<Vec<u32>>,
            lease_ms: u64,
            binding: &[u8],
        ) -> PyResult<(u64, u64, String, String, u16, u64)> {
            let client = self.open_client()?;
            match py.detach(move || client.grant(request_id, &groups, lease_ms, binding)) {
                Ok(granted) => Ok((
                    granted.lease_id,
                    granted.daemon_epoch,
                    granted.ticket,
                    granted.host,
                    granted.port,
                    granted.lease_ms,
                )),
                Err(ClientError::Refused(message)) => Err(RefusedError::new_err(message)),
                Err(error @ (ClientError::NotConnected(_) | ClientError::Timeout(_))) => {
                    Err(UnavailableError::new_err(error.to_string()))
                }
            }
        }

        fn relinquish(&self, py: Python<'_>, ticket: &str) -> PyResult<()> {
            let client = self.open_client()?;
            py.detach(|| client.relinquish(ticket));
            Ok(())
        }

        fn redeem(
            &self,
            py: Python<'_>,
            request_id: &str,
            ticket: &str,
            groups: Vec<(Vec<u32>, Vec<u32>)>,
            deadline_ms: u64,
            binding: &[u8],
        ) -> PyResult<u64> {
            let client = self.open_client()?;
            let groups: Vec<_> =
                groups.into_iter().map(|(positions, targets)| WantedBlocks { positions, targets }).collect();
            Ok(py.detach(|| client.redeem(request_id, ticket, &groups, deadline_ms, binding)))
        }

        fn lookup(&self, py: Python<'_>, request_id: &str, groups: Vec<Vec<PyBackedBytes>>) -> PyResult<u64> {
            let client = self.open_client()?;
            let groups = groups.into_iter().map(|chain| hashes(&chain)).collect::<PyResult<Vec<_>>>()?;
            Ok(py.detach(|| client.lookup(request_id, &groups)))
        }

        fn forget(&self, py: Python<'_>, key: u64) -> PyResult<()> {
            let client = self.open_client()?;
            py.detach(|| client.forget(key));
            Ok(())
        }

        fn watch(&self, py: Python<'_>) -> PyResult<()> {
            let client = self.open_client()?;
            py.detach(|| client.watch());
            Ok(())
        }

        fn clear(&self, py: Python<'_>) -> PyResult<()> {
            let client = self.open_client()?;
            py.detach(|| client.clear());
            Ok(())
        }

        fn load(
            &self,
            py: Python<'_>,
            request_id: &str,
            claim: u64,
            groups: Vec<(Vec<PyBackedBytes>, Vec<u32>)>,
            deadline_ms: u64,
        ) -> PyResult<u64> {
            let client = self.open_client()?;
            let group = |(names, blocks): (Vec<_>, _)| Ok(LoadedBlocks { hashes: hashes(&names)?, blocks });
            let groups = groups.into_iter().map(group).collect::<PyResult<Vec<_>>>()?;
            Ok(py.detach(|| client.load(request_id, claim, &groups, deadline_ms)))
        }

        fn store(
            &self,
            py: Python<'_>,
            request_id: &str,
            groups: Vec<(PyBackedBytes, Vec<PyBackedBytes>, Vec<u32>)>,
            tenant: &[u8],
        ) -> PyResult<u64> {
            let client = self.open_client()?;
            let group = |(parent, names, blocks): (PyBackedBytes, Vec<_>, _)| {
                let parent = if parent.is_empty() { None } else { Some(hash(&parent)?) };
                Ok(StoredBlocks { parent, hashes: hashes(&names)?, blocks })
            };
            let groups = groups.into_iter().map(group).collect::<PyResult<Vec<_>>>()?;
            Ok(py.detach(|| client.store(request_id, &groups, tenant)))
        }

        fn commit(&self, py: Python<'_>, key: u64) -> PyResult<()> {
            let client = self.open_client()?;
            py.detach(|| client.commit(key));
            Ok(())
        }

        fn abort(&self, py: Python<'_>, key: u64) -> PyResult<()> {
            let client = self.open_client()?;
            py.detach(|| client.abort(key));
            Ok(())
        }

        fn poll<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
            let events = py.detach(|| self.client().map(|client| client.poll()).unwrap_or_default());
            events.into_iter().filter_map(|event| to_python(py, event).transpose()).collect()
        }

        fn close(&self, py: Python<'_>) {
            // Dropping the client waits for its thread, which may hold a call of ours.
            py.detach(|| drop(self.open.lock().unwrap_or_else(PoisonError::into_inner).take()));
        }
    }

    fn span(fields: SpanFields) -> LayerSpan {
        let (layer_count, offset, layer_stride, block_stride, head_count, token_count, content_bytes) = fields;
        LayerSpan { layer_count, offset, layer_stride, block_stride, head_count, token_count, content_bytes }
    }

    fn hash(bytes: &PyBackedBytes) -> PyResult<BlockHash> {
        let wrong = |_| PyValueError::new_err(format!("a block's hash has 32 bytes, not {}", bytes.len()));
        BlockHash::try_from(&**bytes).map_err(wrong)
    }

    fn hashes(list: &[PyBackedBytes]) -> PyResult<Vec<BlockHash>> {
        list.iter().map(hash).collect()
    }

    /// A tuple of the event's kind and its fields, in the order of its class in `kvferry/client.py`; none for what the
    /// connector has no use for.
    fn to_python(py: Python<'_>, event: Event) -> PyResult<Option<Bound<'_, PyAny>>> {
        let names = |list: Vec<(u32, BlockHash)>| -> Vec<(u32, Vec<u8>)> {
            list.into_iter().map(|(group, hash)| (group, hash.to_vec())).collect()
        };
        Ok(Some(match event {
            Event::Connected { daemon_epoch } => ("connected", daemon_epoch).into_pyobject(py)?.into_any(),
            Event::Copied { key, request_id, failure } => {
                ("copied", key, request_id, failure).into_pyobject(py)?.into_any()
            }
            Event::Disconnected => ("disconnected",).into_pyobject(py)?.into_any(),
            Event::Found { key, request_id, held, on_disk, failure } => {
                ("found", key, request_id, held, on_disk, failure).into_pyobject(py)?.into_any()
            }
            Event::LeaseEnded { lease_id, daemon_epoch, request_id, reason } => {
                ("lease_ended", lease_id, request_id, daemon_epoch, reason).into_pyobject(py)?.into_any()
            }
            Event::Loaded { key, request_id, failure, bytes, micros, disk_bytes } => {
                ("loaded", key, request_id, failure, bytes, micros, disk_bytes).into_pyobject(py)?.into_any()
            }
            Event::Refused { message } => ("refused", message).into_pyobject(py)?.into_any(),
            Event::Stored { .. } => return Ok(None),
            Event::TierChanged { tier, stored, removed } => {
                ("tier_changed", tier, names(stored), names(removed)).into_pyobject(py)?.into_any()
            }
            Event::TransferDone { key, request_id, failure, bytes, micros } => {
                ("transfer_done", key, request_id, failure, bytes, micros).into_pyobject(py)?.into_any()
            }
        }))
    }
}
