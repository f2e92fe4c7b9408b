//! The decode engine's answer on its way to the client: every frame as it comes, nothing held back, and a bound on the
//! engine's silence.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tracing::warn;

use super::error::Chain;
use super::headers::RequestId;
use super::metrics::Metrics;
use super::refusal::Refusal;

/// A response body under way. An error makes the HTTP library cut the client's connection, so that an answer that broke
/// off cannot be taken for a complete one. Dropping it (the client went away) closes the engine's connection.
pub(crate) struct Relay {
    engine: Body,
    /// When the engine has been silent for too long.
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    request_id: RequestId,
    metrics: Metrics,
}

impl Relay {
    pub(crate) fn new(engine: Body, silence_max: Duration, request_id: RequestId, metrics: Metrics) -> Self {
        Self { engine, silence: Box::pin(sleep(silence_max)), silence_max, request_id, metrics }
    }

    fn break_off(&self, error: axum::Error) -> axum::Error {
        self.metrics.broken_answers.inc();
        let request_id = self.request_id.as_str();
        warn!(request_id, "failed to relay the decode engine's answer to its end: {}", Chain(&error));
        error
    }
}

impl HttpBody for Relay {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.engine).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let deadline = Instant::now() + self.silence_max;
                self.silence.as_mut().reset(deadline);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.break_off(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(cx));
                Poll::Ready(Some(Err(self.break_off(axum::Error::new(Refusal::DecodeSilent)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.engine.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.engine.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use prometheus_client::registry::Registry;

    use super::*;

    const MAX: Duration = Duration::from_secs(10);

    /// A body whose pieces come `pauses` apart, on the test's virtual clock.
    fn relay(pauses: Vec<Duration>) -> Relay {
        let (pieces, body) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for pause in pauses {
                sleep(pause).await;
                pieces.send(Ok::<_, axum::Error>(Bytes::from_static(b"x"))).await.unwrap();
            }
        });
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
        let metrics = Metrics::register(&mut Registry::default());
        Relay::new(body, MAX, RequestId::of(&axum::http::HeaderMap::new()), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_measured_from_the_last_piece() {
        let slow = relay(vec![MAX.mul_f32(0.9); 5]);
        assert_eq!(slow.collect().await.unwrap().to_bytes(), "xxxxx");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_beyond_the_limit_is_an_error() {
        let mut stalled = relay(vec![MAX.mul_f32(0.9), MAX.mul_f32(1.1)]);
        assert!(stalled.frame().await.unwrap().is_ok());
        let error = stalled.frame().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), Refusal::DecodeSilent.to_string());
        assert_eq!(stalled.metrics.broken_answers.get(), 1);
    }
}
