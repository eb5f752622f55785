//! How things fail: one code that knows its HTTP status and its gRPC status, and a sentence for the client.

use std::borrow::Cow;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request was not answered with tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is wrong and will stay wrong.
    InvalidArgument,
    NotFound,
    MethodNotAllowed,
    /// The client sent its request too slowly.
    RequestTimeout,
    AlreadyExists,
    /// A body, or what it inflates to, is over a limit.
    TooLarge,
    UnsupportedMedia,
    /// The server has no such feature, or it is switched off.
    Unsupported,
    Unauthenticated,
    /// The server or the model can't take this now.
    Unavailable,
    /// A queue is full: as Unavailable, and the client is told when to come back.
    Overloaded,
    DeadlineExceeded,
    Cancelled,
    /// The model or the server failed.
    Internal,
}

impl Code {
    pub const fn http_status(self) -> u16 {
        match self {
            Code::InvalidArgument | Code::AlreadyExists | Code::Cancelled => 400,
            Code::Unauthenticated => 401,
            Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::RequestTimeout => 408,
            Code::TooLarge => 413,
            Code::UnsupportedMedia => 415,
            Code::Internal => 500,
            Code::Unsupported => 501,
            Code::Unavailable | Code::Overloaded | Code::DeadlineExceeded => 503,
        }
    }

    /// The status number of the gRPC specification (`grpc/doc/statuscodes.md`).
    pub const fn grpc_status(self) -> u8 {
        match self {
            Code::Cancelled => 1,
            Code::InvalidArgument | Code::UnsupportedMedia => 3,
            Code::DeadlineExceeded | Code::RequestTimeout => 4,
            Code::NotFound => 5,
            Code::AlreadyExists => 6,
            Code::TooLarge => 8,
            Code::Unsupported | Code::MethodNotAllowed => 12,
            Code::Internal => 13,
            Code::Unavailable | Code::Overloaded => 14,
            Code::Unauthenticated => 16,
        }
    }
}

/// A code and a sentence: the thing, what was expected, what came, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    pub message: Cow<'static, str>,
}

impl Error {
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Error {
        Error { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::NotFound, message)
    }

    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::TooLarge, message)
    }

    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::Unsupported, message)
    }

    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::Unavailable, message)
    }

    pub fn internal(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Code::Internal, message)
    }
}
