//! GC, also of what was made by delegates without a GC of their own.

use cni_protocol::{Call, Command, Delegate, Error, GcArgs, Outcome, ValidAttachment, Verb};
use serde_json::Value;

use super::conf::{self, FlannelConf};
use super::delegate::Facts;
use super::state::{self, Gone};
use super::{carry_out, is_weft, plugin_of};

/// Has the delegate collect, then undoes and forgets what is gone. What fails keeps nothing else from it.
///
/// # Errors
/// The first failure, with the others as its details.
pub(super) fn gc(conf: &FlannelConf, mut args: GcArgs) -> Result<Outcome, Error> {
    let _no_add = state::lock_out_adds(conf, &args.call)?;
    let unlisted = state::unlisted(conf, &args.call.network, &args.valid)?;
    args.keep(&unlisted.kept);
    let facts = Facts::of_host(&conf.subnet_file).unwrap_or_default();
    let delegate = conf.delegate(&args.call, &facts);
    let call = args.call.clone();
    let mut failure = carry_out(Command::Gc(args), delegate).err();
    let is_collected = failure.is_none();
    for gone in unlisted.gone {
        // What Weft could not collect is needed until it can.
        if is_weft(&gone.delegate) && !is_collected {
            continue;
        }
        if let Err(error) = undo(&gone, &call).and_then(|()| gone.state.remove()) {
            failure = Some(match failure {
                None => error,
                Some(first) => error.lines().fold(first, Error::detail),
            });
        }
    }
    failure.map_or(Ok(Outcome::Done), Err)
}

/// It cannot be told whether delegates' GC has done it, and the reference plugins' interface plugins have none
/// (v1.9.1): an attachment that nothing is known of any more could not even be deleted.
fn undo(gone: &Gone, call: &Call) -> Result<(), Error> {
    let mut delegate = conf::again(call, gone.delegate.clone());
    if is_weft(&delegate) {
        return Ok(());
    }
    delegate.retain(|key, _| !key.ends_with("attachments"));
    let plugin = plugin_of(&delegate);
    let stdin = Value::Object(delegate).to_string().into_bytes();
    let env = [
        ("CNI_CONTAINERID", gone.attachment.container_id.as_str()),
        ("CNI_IFNAME", gone.attachment.ifname.as_str()),
        // Its container is gone.
        ("CNI_NETNS", ""),
    ];
    let delete =
        || Delegate::find(&plugin, &call.cni_path)?.start(Verb::Del, &env)?.finish(&stdin, call.deadline);
    let ValidAttachment { container_id, ifname } = &gone.attachment;
    delete().map(drop).map_err(|error| Error {
        msg: format!("delete interface {ifname} of container {container_id}: {}", error.msg),
        ..error
    })
}
