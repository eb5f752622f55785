//! HTTP: which path is what, and how failures are said.

mod admin;
mod infer;
mod regions;
mod route;

use crate::body::Frames;
use crate::metrics;
use crate::server::{Server, State};
use crate::shard::{Role, Shard};
use crate::stream::{Phase, Watch};
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use penstock_schema::{Code, Error, Result, limits};
use route::{ModelPart, Route};
use std::convert::Infallible;
use std::sync::Arc;

pub type Reply = Response<Frames>;

/// Answers one request; whatever goes wrong becomes an answer, too.
pub async fn serve(
    shard: Arc<Shard>,
    watch: Arc<Watch>,
    role: Role,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    let token = watch.answering();
    watch.enter(Phase::Busy);
    // hyper takes a message with both lengths as chunked and forgets the other. A proxy in front may have read it the
    // other way, so a connection never goes on after a chunked request: nothing can hide behind it.
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let has_body = !request.body().is_end_stream();
    let answered = match role {
        _ if !names_its_host(&request) => Ok(refuse(
            StatusCode::BAD_REQUEST,
            &format!(
                "HTTP/1.1 request: expected one Host header, got {}",
                request.headers().get_all(HOST).iter().count()
            ),
        )),
        Role::Metrics => metrics_page(&shard.server, &request),
        _ => answer(&shard, request).await,
    };
    let mut reply = answered.unwrap_or_else(|error| failure(&error));
    let unread = has_body && may_precede_body(&shard.server, reply.status());
    if chunked || unread {
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    watch.enter(Phase::Reply);
    Ok(reply.map(|body| body.answering(token)))
}

/// Two hosts are read in two ways by those before and behind this server (RFC 9112, section 3.2). HTTP/1.0 has none.
fn names_its_host(request: &Request<Incoming>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), None) => true,
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// Whether an answer may have been given before the body was read. hyper closes the connection then, and the client
/// has to be told, or its next request goes into a closed socket.
fn may_precede_body(server: &Server, status: StatusCode) -> bool {
    match status {
        StatusCode::SERVICE_UNAVAILABLE => server.state() == State::Draining,
        StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNAUTHORIZED
        | StatusCode::NOT_IMPLEMENTED => true,
        _ => false,
    }
}

async fn answer(shard: &Arc<Shard>, request: Request<Incoming>) -> Result<Reply> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target as u64 > limits::TARGET_BYTES {
        return Ok(refuse(
            StatusCode::URI_TOO_LONG,
            &format!("request target has {target} bytes, more than the limit of {}", limits::TARGET_BYTES),
        ));
    }
    let header_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if header_bytes as u64 > limits::HEADER_BYTES {
        let message =
            format!("request headers have {header_bytes} bytes, more than the limit of {}", limits::HEADER_BYTES);
        return Ok(refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &message));
    }
    let path = request.uri().path().to_owned();
    let route = route::parse(&path)?;
    if !route.allows(request.method()) {
        let mut reply = failure(&Error::new(
            Code::MethodNotAllowed,
            format!("{} does not take {}; use {}", path_of(&path), request.method(), route.methods()),
        ));
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static(route.methods()));
        return Ok(reply);
    }
    let server = &shard.server;
    match route {
        Route::Live => Ok(empty(StatusCode::OK)),
        Route::Ready => Ok(empty(if server.is_ready() { StatusCode::OK } else { StatusCode::BAD_REQUEST })),
        Route::Server => Ok(json(penstock_wire::metadata::server_json(
            &server.config.server_name,
            &server.config.server_version,
            &server.config.extensions,
        ))),
        Route::Statistics => Ok(json(admin::statistics(server, None, None)?)),
        Route::Model { name, version, part } => match part {
            ModelPart::Infer => infer::infer(shard, name, version, request).await,
            ModelPart::Metadata => Ok(json(admin::metadata(server, name, version)?)),
            ModelPart::Config => Ok(json(server.registry.get(name, version)?.spec.config_json.clone())),
            ModelPart::Ready => admin::ready(server, name, version),
            ModelPart::Statistics => Ok(json(admin::statistics(server, Some(name), version)?)),
        },
        Route::Index => admin::index(shard, request).await,
        Route::Load(name) => admin::load(shard, name, request).await,
        Route::Unload(name) => admin::unload(shard, name, request).await,
        Route::SharedMemory { kind, region, part } => regions::answer(shard, kind, region, part, request).await,
        Route::Unsupported(what) => Err(Error::unsupported(format!("{what} is not supported by this server"))),
    }
}

fn metrics_page(server: &Arc<Server>, request: &Request<Incoming>) -> Result<Reply> {
    match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => {
            let mut reply = Response::new(Frames::one(Bytes::from(metrics::page(server))));
            reply
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
            Ok(reply)
        }
        ("/metrics", method) => {
            Err(Error::new(Code::MethodNotAllowed, format!("/metrics does not take {method}; use GET")))
        }
        _ => Err(Error::not_found("Not Found")),
    }
}

/// A path short enough to repeat in an error.
fn path_of(path: &str) -> String {
    crate::registry::clip(path)
}

pub fn json(body: Bytes) -> Reply {
    let mut reply = Response::new(Frames::one(body));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Frames::default());
    *reply.status_mut() = status;
    reply
}

fn refuse(status: StatusCode, message: &str) -> Reply {
    let mut reply = json(penstock_wire::json::error(message));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// The answer that says what went wrong.
pub fn failure(error: &Error) -> Reply {
    let mut reply = json(penstock_wire::json::error(&error.message));
    *reply.status_mut() = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match error.code {
        Code::Overloaded => {
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(limits::RETRY_AFTER_SECONDS));
        }
        // The rest of the body is not wanted any more, so the connection cannot go on.
        Code::TooLarge | Code::RequestTimeout => {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Code::Unauthenticated => {
            reply.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        _ => {}
    }
    reply
}
