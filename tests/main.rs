//! The whole, from outside. One binary:
//!
//! * `house`: starts the real binary on a free port; everybody below uses it;
//! * `bank`: what is warm outlives a server, and is managed from the command line;
//! * `chaos`: the engine dies again and again, and no answer is lost or changed;
//! * `chat`: a conversation in a terminal, and one answer for a script;
//! * `cli`: what the command line says, above all when something is wrong;
//! * `convert`: a published checkpoint becomes one that is served, or nothing;
//! * `commands`: every command has a help, a schema and errors that were read;
//! * `config`: every file in config/ parses and checks;
//! * `consent`: what is asked in a terminal, and what a no means;
//! * `dashboard`: the page that shows the essentials, in a browser;
//! * `dashboards`: panels and rules name what there is, and have data;
//! * `modes`: what is written is the same in every mode;
//! * `openai`: the official clients for Python and JavaScript against the real server;
//! * `openapi`: schemathesis against the real server, by its own document;
//! * `packaging`: a release is made of what its formula installs, with all licences;
//! * `openwebui`: Open WebUI in a browser against the real server, where that was asked for;
//! * `doctor`: whether a machine can serve, and what clients and shells are given;
//! * `fans`: fans that are held at their most are given back, however a server ends;
//! * `leaving`: a client that goes away takes its row along;
//! * `memory`: what is needed is said beforehand, what does not fit is refused;
//! * `metrics`: what /metrics shows is what was served;
//! * `nodes`: several machines, killed, cut off, drained and refused;
//! * `drain`: SIGTERM lets running requests finish;
//! * `pull`: models from a stand-in hub, cut off, spoilt and refused;
//! * `reload`: settings are read anew, all or none, and no answer changes;
//! * `service`: what launchd and systemd are given;
//! * `start`: from three questions to a conversation;
//! * `structure`: answers of the structure that was asked for;
//! * `team`: clients with keys, beside each other;
//! * `traces`: what a collector is told of a request;
//! * `tidy`: the rules of the house itself;
//! * `tls`: encrypted, and with which certificate;
//! * `ui`: the chat page, in a browser;
//! * `models`: what is said of models, which of them are served, verified and deleted;
//! * `zoo`: two hundred folders, good and damaged, are judged rightly.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "this is a test: what fails must fail loudly, and figures are printed"
)]

mod bank;
mod chaos;
mod chat;
mod cli;
mod commands;
mod config;
mod consent;
mod convert;
mod dashboard;
mod dashboards;
mod doctor;
mod drain;
mod fans;
mod house;
mod leaving;
mod memory;
mod metrics;
mod models;
mod modes;
mod nodes;
mod openai;
mod openapi;
mod openwebui;
mod packaging;
mod pull;
mod reload;
mod service;
mod start;
mod structure;
mod team;
mod tidy;
mod tls;
mod traces;
mod ui;
mod zoo;
