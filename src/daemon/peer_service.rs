//! The gRPC service that peers call. Every call becomes a command for the hub.

use kvferry_proto::v1;
use kvferry_proto::v1::peer_server::Peer;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use super::command::Command;

pub(crate) struct PeerService {
    pub(crate) commands: mpsc::Sender<Command>,
}

impl PeerService {
    async fn tell(&self, command: Command) -> Result<(), Status> {
        self.commands.send(command).await.map_err(|_| Status::unavailable("daemon is stopping"))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn open_endpoint(
        &self,
        request: Request<v1::OpenEndpointRequest>,
    ) -> Result<Response<v1::OpenEndpointReply>, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::OpenEndpoint { request: request.into_inner(), reply }).await?;
        answer.await.map(Response::new).map_err(|_| Status::unavailable("daemon is stopping"))
    }

    async fn confirm(&self, request: Request<v1::ConfirmRequest>) -> Result<Response<v1::ConfirmReply>, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Confirm { request: request.into_inner(), reply }).await?;
        answer.await.map(Response::new).map_err(|_| Status::unavailable("daemon is stopping"))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseReply>, Status> {
        self.tell(Command::Release { ticket: request.into_inner().ticket }).await?;
        Ok(Response::new(v1::ReleaseReply {}))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelReply>, Status> {
        self.tell(Command::Cancel { request: request.into_inner() }).await?;
        Ok(Response::new(v1::CancelReply {}))
    }
}
