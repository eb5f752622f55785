//! Every bound of the data plane, generated from `python/penstock/limits.toml`, where each has its reason.

include!(concat!(env!("OUT_DIR"), "/limits.rs"));
