//! A `ModelStreamInfer` call that stays open: a request is a message up, its answer the next message down.

use crate::connection::{Common, Failure};
use crate::grpc::{self, lost};
use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use penstock_wire::grpc::{PREFIX_BYTES, pb, unframe};
use prost::Message;

pub(crate) struct Stream {
    up: SendStream<Bytes>,
    down: Down,
    arrived: BytesMut,
    /// The connection ends when nobody could send on it any more.
    _sender: grpc::Sender,
}

/// Servers may answer the call itself with the first message only.
enum Down {
    Waiting(Option<ResponseFuture>),
    Open(RecvStream),
}

impl Stream {
    pub(crate) async fn open(mut sender: grpc::Sender, common: &Common) -> Result<Stream, String> {
        let begun = grpc::begin(&mut sender, common, &common.headers).await;
        let (answered, up) = begun.map_err(Failure::text)?;
        Ok(Stream { up, down: Down::Waiting(Some(answered)), arrived: BytesMut::new(), _sender: sender })
    }

    /// A framed request up; the message that comes next, without its prefix.
    pub(crate) async fn exchange(&mut self, message: Bytes) -> Result<Bytes, Failure> {
        self.up.send_data(message, false).map_err(lost)?;
        let length = loop {
            if let Some(length) = announced(&self.arrived)
                && self.arrived.len() >= PREFIX_BYTES + length
            {
                break length;
            }
            self.receive().await?;
        };
        drop(self.arrived.split_to(PREFIX_BYTES));
        let message = self.arrived.split_to(length).freeze();
        match error_of(&message) {
            Some(problem) => Err(Failure::Refused(problem)),
            None => Ok(message),
        }
    }

    async fn receive(&mut self) -> Result<(), Failure> {
        let over = || Failure::Lost("the server ended the stream".into());
        match &mut self.down {
            Down::Open(answer) => match grpc::next(answer).await? {
                Some(data) => self.arrived.extend_from_slice(&data),
                None => {
                    grpc::ended(answer).await?;
                    return Err(over());
                }
            },
            Down::Waiting(answered) => {
                let answered = answered.take().ok_or_else(over)?;
                self.down = Down::Open(grpc::received(answered).await?.ok_or_else(over)?);
            }
        }
        Ok(())
    }
}

/// The length in the prefix of a message, if that has arrived.
fn announced(arrived: &[u8]) -> Option<usize> {
    let prefix = arrived.get(..PREFIX_BYTES)?.try_into().ok()?;
    unframe(prefix).ok().map(|prefix| prefix.length as usize)
}

/// Field 1 of `ModelStreamInferResponse`, if it is there: it stands first.
fn error_of(message: &[u8]) -> Option<String> {
    if message.first() != Some(&0x0a) {
        return None;
    }
    let found = pb::ModelStreamInferResponse::decode(message).ok()?;
    (!found.error_message.is_empty()).then_some(found.error_message)
}
