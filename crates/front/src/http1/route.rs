//! Paths of the v2 protocol and its extensions as a table. Anything else is 404 `Not Found`.

use crate::regions::Kind;
use http::Method;
use penstock_schema::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelPart {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionPart {
    Status,
    Register,
    Unregister,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    Server,
    Live,
    Ready,
    Statistics,
    Model {
        name: &'a str,
        version: Option<&'a str>,
        part: ModelPart,
    },
    Index,
    Load(&'a str),
    Unload(&'a str),
    SharedMemory {
        kind: Kind,
        /// As in the path, percent signs and all; `None` is every region.
        region: Option<&'a str>,
        part: RegionPart,
    },
    /// Part of the protocol, but not built.
    Unsupported(&'static str),
}

impl Route<'_> {
    /// The methods of the path, as in an `Allow` header.
    pub fn methods(&self) -> &'static str {
        match self {
            Route::Model { part: ModelPart::Infer, .. } | Route::Index | Route::Load(_) | Route::Unload(_) => "POST",
            Route::SharedMemory { part: RegionPart::Register | RegionPart::Unregister, .. } => "POST",
            Route::Unsupported(_) => "GET, POST",
            _ => "GET, HEAD",
        }
    }

    pub fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// What a path means. Error: 404.
pub fn parse(path: &str) -> Result<Route<'_>> {
    let not_found = || Error::not_found("Not Found");
    let rest = path.strip_prefix("/v2").ok_or_else(not_found)?;
    if rest.is_empty() {
        return Ok(Route::Server);
    }
    let mut parts = [""; 7];
    let mut count = 0;
    for part in rest.strip_prefix('/').ok_or_else(not_found)?.split('/') {
        *parts.get_mut(count).ok_or_else(not_found)? = part;
        count += 1;
    }
    // An empty part is a slash too many.
    if parts[..count].contains(&"") {
        return Err(not_found());
    }
    match &parts[..count] {
        ["health", "live"] => Ok(Route::Live),
        ["health", "ready"] => Ok(Route::Ready),
        ["models", "stats"] => Ok(Route::Statistics),
        ["models", name] => model(name, None, ""),
        ["models", name, "versions", version] => model(name, Some(version), ""),
        ["models", name, part] => model(name, None, part),
        ["models", name, "versions", version, part] => model(name, Some(version), part),
        ["models", _, "trace", "setting"] | ["trace", "setting"] => Ok(Route::Unsupported("tracing")),
        ["logging"] => Ok(Route::Unsupported("changing the log settings")),
        ["repository", "index"] => Ok(Route::Index),
        ["repository", "models", name, "load"] => Ok(Route::Load(name)),
        ["repository", "models", name, "unload"] => Ok(Route::Unload(name)),
        // A name with slashes in it is a wrong name, not an unknown path.
        ["repository", "models", .., "load" | "unload"] => {
            Err(Error::invalid("model name: expected letters, digits, '.', '_' and '-' only, got a path"))
        }
        ["systemsharedmemory", rest @ ..] => shared_memory(Kind::System, rest),
        ["cudasharedmemory", rest @ ..] => shared_memory(Kind::Device, rest),
        _ => Err(not_found()),
    }
}

fn shared_memory<'a>(kind: Kind, rest: &[&'a str]) -> Result<Route<'a>> {
    let (region, part) = match rest {
        [part] => (None, *part),
        ["region", name, part] => (Some(*name), *part),
        ["region", _, .., "status" | "register" | "unregister"] => {
            return Err(Error::invalid("shared memory region: expected a name without slashes, got a path"));
        }
        _ => return Err(Error::not_found("Not Found")),
    };
    let part = match (part, region) {
        ("status", _) => RegionPart::Status,
        ("register", Some(_)) => RegionPart::Register,
        ("unregister", _) => RegionPart::Unregister,
        _ => return Err(Error::not_found("Not Found")),
    };
    Ok(Route::SharedMemory { kind, region, part })
}

fn model<'a>(name: &'a str, version: Option<&'a str>, part: &str) -> Result<Route<'a>> {
    let part = match part {
        "" => ModelPart::Metadata,
        "ready" => ModelPart::Ready,
        "config" => ModelPart::Config,
        "stats" => ModelPart::Statistics,
        "infer" => ModelPart::Infer,
        "generate" | "generate_stream" => return Ok(Route::Unsupported("the generate extension")),
        _ => return Err(Error::not_found("Not Found")),
    };
    Ok(Route::Model { name, version, part })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let infer = ModelPart::Infer;
        for (path, expected) in [
            ("/v2", Some(Route::Server)),
            ("/v2/health/live", Some(Route::Live)),
            ("/v2/models/stats", Some(Route::Statistics)),
            ("/v2/models/m/infer", Some(Route::Model { name: "m", version: None, part: infer })),
            ("/v2/models/m/versions/3/infer", Some(Route::Model { name: "m", version: Some("3"), part: infer })),
            ("/v2/repository/models/m/load", Some(Route::Load("m"))),
            (
                "/v2/systemsharedmemory/region/r%2e/register",
                Some(Route::SharedMemory { kind: Kind::System, region: Some("r%2e"), part: RegionPart::Register }),
            ),
            (
                "/v2/cudasharedmemory/unregister",
                Some(Route::SharedMemory { kind: Kind::Device, region: None, part: RegionPart::Unregister }),
            ),
            ("/v2/systemsharedmemory/register", None),
            ("/v2/systemsharedmemory", None),
            ("/v2/systemsharedmemory/region/../a/register", None),
            ("/v2x", None),
            ("/v2/", None),
            ("/v2/models/m/", None),
            ("/v2/models//infer", None),
            ("/", None),
            ("/v2/models/m/versions/3/infer/more", None),
            ("/v2/a/b/c/d/e/f/g/h/i", None),
        ] {
            assert_eq!(parse(path).ok(), expected, "{path}");
        }
    }
}
