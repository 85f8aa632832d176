//! The keys of `[server]`: the API's address, and the limits of its clients.

use std::net::IpAddr;

use super::keys::{Key, SIZE, TIME, key};
use super::units;

const MANY: &str = "a whole number, 1 or more";

pub(super) static SERVER: [Key; 13] = [
    key("server.host", Some("ASH_HOST"), "an IP address, such as \"127.0.0.1\" or \"::\"", |d, g| {
        let host = g.text()?;
        d.config.server.host = if host == "localhost" { IpAddr::from([127, 0, 0, 1]) } else { host.parse().ok()? };
        Some(())
    }),
    key("server.port", Some("ASH_PORT"), "a port from 0 to 65535 (0 picks a free one)", |d, g| {
        d.config.server.port = g.integer()?;
        Some(())
    }),
    key("server.cors_origins", None, "a list of origins, such as [\"https://app.example.com\"]", |d, g| {
        d.config.server.cors_origins = g.list()?;
        Some(())
    }),
    key("server.requests_per_minute", None, "a whole number of requests (0: any number)", |d, g| {
        d.config.server.requests_per_minute = g.integer()?;
        Some(())
    }),
    key("server.max_connections", None, MANY, |d, g| {
        d.config.server.max_connections = g.integer().filter(|n| *n > 0)?;
        Some(())
    }),
    key("server.max_connections_per_address", None, MANY, |d, g| {
        d.config.server.max_connections_per_address = g.integer().filter(|n| *n > 0)?;
        Some(())
    }),
    key("server.streams_per_tenant", None, MANY, |d, g| {
        d.config.server.streams_per_tenant = g.integer().filter(|n| *n > 0)?;
        Some(())
    }),
    key("server.concurrent_requests_per_tenant", None, MANY, |d, g| {
        d.config.server.concurrent_requests_per_tenant = g.integer().filter(|n| *n > 0)?;
        Some(())
    }),
    key("server.request_memory", None, SIZE, |d, g| {
        d.config.server.request_memory = g.number(units::bytes)?;
        Some(())
    }),
    key("server.request_memory_per_tenant", None, SIZE, |d, g| {
        d.config.server.request_memory_per_tenant = g.number(units::bytes)?;
        Some(())
    }),
    key("server.head_timeout_ms", None, TIME, |d, g| {
        d.config.server.head_timeout_ms = g.number(units::millis).filter(|n| *n > 0)?;
        Some(())
    }),
    key("server.idle_timeout_ms", None, TIME, |d, g| {
        d.config.server.idle_timeout_ms = g.number(units::millis).filter(|n| *n > 0)?;
        Some(())
    }),
    key("server.stall_timeout_ms", None, TIME, |d, g| {
        d.config.server.stall_timeout_ms = g.number(units::millis).filter(|n| *n > 0)?;
        Some(())
    }),
];
