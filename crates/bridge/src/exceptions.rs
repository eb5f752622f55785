//! Our errors as the Python exceptions that carry the same statuses: `penstock.errors`.

use penstock_schema::{Code, Error};
use pyo3::prelude::*;

/// The exception for an error. What can't be made one is the exception of that failure.
pub fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    py.import("penstock.errors")?.getattr(class(error.code))?.call1((error.message.as_ref(),))
}

pub fn raised(py: Python<'_>, error: &Error) -> PyErr {
    exception(py, error).map_or_else(|failure| failure, PyErr::from_value)
}

fn class(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument | Code::UnsupportedMedia => "InvalidArgument",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::TooLarge => "ResourceExhausted",
        Code::Unsupported | Code::MethodNotAllowed => "Unsupported",
        Code::Unauthenticated => "Unauthenticated",
        Code::Unavailable | Code::Overloaded => "Unavailable",
        Code::DeadlineExceeded | Code::RequestTimeout => "DeadlineExceeded",
        Code::Cancelled => "Cancelled",
        Code::Internal => "ExecutionError",
    }
}
