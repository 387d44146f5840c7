//! What host ports, isolation and limits cost.

use super::{Backend, Features, Host, Peers, RUNS, Row, Shape, Suite, Target, attach_and_detach, walls};

pub(super) fn everything(peers: &Peers) -> Vec<Row> {
    let hosts = [Host::new("everything-on"), Host::new("everything-off")];
    let all = Shape { port: Some(Backend::Nftables), features: Features::All, ..Shape::default() };
    let none = Shape { features: Features::None, ..Shape::default() };
    let on = peers.network(&hosts[0], Suite::Weft, all);
    let off = peers.network(&hosts[1], Suite::Weft, none);
    let (adds, dels) = attach_and_detach(&on, &off, RUNS);
    let what = "host port, limits, icc off";
    let peer = "weft with none of it";
    vec![
        Row::new(&format!("ADD, {what}"), peer, "ms", Target::Ratio(1.5), &walls(&adds)),
        Row::new(&format!("DEL, {what}"), peer, "ms", Target::Ratio(1.5), &walls(&dels)),
    ]
}
