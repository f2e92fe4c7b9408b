//! A hostile peer between a reader and a real holder.
//!
//! ```text
//! reader -- gRPC --> relay (rewrites data_port, plays control tricks) -- gRPC --> holder
//! reader -- data --> relay (plays byte tricks)                        -- data --> holder
//! ```
//!
//! The holder's tickets name the relay (`peer.advertise`), so the reader takes it for the holder.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use kvferry_proto::v1::peer_client::PeerClient;
use kvferry_proto::v1::peer_server::{Peer, PeerServer};
use kvferry_proto::v1::{self};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::tricks::{DataRelay, Lane};
use super::{Daemon, DaemonOptions};

/// What happens to the calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Control {
    #[default]
    Pass,
    /// Confirm's answer is another one.
    Confirm(fn(&mut v1::ConfirmReply)),
    /// Confirm reaches the holder only when the control trick changes.
    HoldConfirm,
    /// Confirm's answer comes only when the control trick changes.
    HoldConfirmed,
    /// The answer to `OpenEndpoint` is another one.
    Open(fn(&mut v1::OpenEndpointReply)),
}

/// See the module's text.
pub(crate) struct Relay {
    address: SocketAddr,
    data: DataRelay,
    holder: Arc<Mutex<Option<SocketAddr>>>,
    holder_data: Arc<Mutex<Option<SocketAddr>>>,
    control: watch::Sender<Control>,
    _runtime: Runtime,
}

impl Relay {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("start a runtime");
        let (holder, holder_data) = (Arc::default(), Arc::default());
        let data = DataRelay::start(Arc::clone(&holder_data));
        let control = watch::Sender::new(Control::Pass);
        let service = Service { holder: Arc::clone(&holder), data_port: data.port, control: control.subscribe() };
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
            let address = listener.local_addr().expect("address");
            let server = Server::builder().add_service(PeerServer::new(service));
            tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
            address
        });
        Self { address, data, holder, holder_data, control, _runtime: runtime }
    }

    /// A holder whose tickets name this relay.
    pub(crate) fn holder(&self, limits: &str) -> Daemon {
        let options = DaemonOptions {
            peer: format!("advertise = \"{}\"", self.address),
            limits: limits.to_owned(),
            ..Default::default()
        };
        let daemon = Daemon::start_with(&options);
        self.lead_to(&daemon);
        daemon
    }

    /// Leads to this daemon from now on.
    pub(crate) fn lead_to(&self, daemon: &Daemon) {
        *self.holder.lock().expect("holder") = Some(daemon.peer);
        *self.holder_data.lock().expect("holder") = Some(daemon.data);
    }

    /// Bytes from the holder.
    pub(crate) fn down(&self) -> &Lane {
        &self.data.down
    }

    /// Bytes to the holder.
    pub(crate) fn up(&self) -> &Lane {
        &self.data.up
    }

    pub(crate) fn control(&self, trick: Control) {
        self.control.send_replace(trick);
    }
}

struct Service {
    holder: Arc<Mutex<Option<SocketAddr>>>,
    data_port: u16,
    control: watch::Receiver<Control>,
}

impl Service {
    async fn holder(&self) -> Result<PeerClient<Channel>, Status> {
        let address = *self.holder.lock().expect("holder");
        let address = address.ok_or_else(|| Status::unavailable("no holder yet"))?;
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(PeerClient::new(channel))
    }

    fn trick(&self) -> Control {
        *self.control.borrow()
    }

    async fn until(&self, over: impl Fn(&Control) -> bool) {
        // The sender lives as long as the test.
        let _ = self.control.clone().wait_for(over).await;
    }
}

#[tonic::async_trait]
impl Peer for Service {
    async fn open_endpoint(
        &self,
        request: Request<v1::OpenEndpointRequest>,
    ) -> Result<Response<v1::OpenEndpointReply>, Status> {
        let mut reply = self.holder().await?.open_endpoint(request.into_inner()).await?.into_inner();
        if reply.data_port != 0 {
            reply.data_port = u32::from(self.data_port);
        }
        if let Control::Open(edit) = self.trick() {
            edit(&mut reply);
        }
        Ok(Response::new(reply))
    }

    async fn confirm(&self, request: Request<v1::ConfirmRequest>) -> Result<Response<v1::ConfirmReply>, Status> {
        self.until(|trick| !matches!(trick, Control::HoldConfirm)).await;
        let mut reply = self.holder().await?.confirm(request.into_inner()).await?.into_inner();
        self.until(|trick| !matches!(trick, Control::HoldConfirmed)).await;
        if let Control::Confirm(edit) = self.trick() {
            edit(&mut reply);
        }
        Ok(Response::new(reply))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseReply>, Status> {
        self.holder().await?.release(request.into_inner()).await
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        self.holder().await?.cancel(request.into_inner()).await
    }
}
