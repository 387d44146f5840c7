use proptest::prelude::*;

use super::*;

/// As flanneld v0.28.10 wrote them.
const RECORDS: [(&str, &str); 4] = [
    (
        "10.240.34.0-24",
        r#"{"PublicIP":"172.30.0.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"56:21:65:59:76:28"}}"#,
    ),
    (
        "10.244.65.0-24&fd00:42:0:31::-64",
        r#"{"PublicIP":"172.30.0.12","PublicIPv6":"fd30::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5a:00:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"8e:00:00:00:00:02"}}"#,
    ),
    (
        "0.0.0.0-0&fd00:43:0:12::-64",
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd30::12","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"8e:00:00:00:00:02"}}"#,
    ),
    ("10.240.7.0-24", r#"{"PublicIP":"172.30.0.11","PublicIPv6":null,"BackendType":"host-gw"}"#),
];

#[test]
fn flannels_bytes_both_ways() {
    for (key, value) in RECORDS {
        let record = HostRecord::parse(key, value).unwrap();
        assert_eq!((record.key().as_str(), record.value().as_str()), (key, value));
    }
}

#[test]
fn a_key_of_no_subnet_is_none() {
    assert_eq!(parse_key("0.0.0.0-0"), None);
}

#[test]
fn hostile_records_are_refused() {
    let good = RECORDS[0].1;
    for key in [
        "", "config", "10.240.34.0", "10.240.34.0-", "10.240.34.0-33", "10.240.34.7-24", "0.0.0.0-0",
        "fd00::-64", "10.240.34.0-+24", "10.240.34.0-24&", "10.240.34.0-24&10.0.0.0-24", "../10.240.34.0-24",
    ] {
        assert_eq!(HostRecord::parse(key, good), Err(RecordError::Key), "{key}");
    }
    let key = RECORDS[0].0;
    for (value, part) in [
        ("", "no record"),
        ("[1]", "no record"),
        (r#"{"PublicIP":"172.30.0.12","BackendType":"extension","BackendData":{"x":"rm"}}"#, "extension"),
        (&good.replace("172.30.0.12", "0.0.0.0"), "PublicIP"),
        (&good.replace("172.30.0.12", "127.0.0.1"), "PublicIP"),
        (&good.replace("172.30.0.12", "224.0.0.1"), "PublicIP"),
        (&good.replace("172.30.0.12", "255.255.255.255"), "PublicIP"),
        (&good.replace("56:21:65:59:76:28", "56:21:65:59:76"), "VtepMAC"),
        (&good.replace("56:21:65:59:76:28", "57:21:65:59:76:28"), "VtepMAC"),
        (&good.replace("56:21:65:59:76:28", "00:00:00:00:00:00"), "VtepMAC"),
        (&good.replace("\"VNI\":1", "\"VNI\":16777216"), "VNI"),
        (&good.replace("\"VNI\":1", "\"VNI\":-1"), "BackendData"),
        (r#"{"PublicIP":"172.30.0.12","BackendType":"vxlan"}"#, "BackendData"),
    ] {
        let error = HostRecord::parse(key, value).unwrap_err().to_string();
        assert!(error.contains(part), "{value}: {error}");
    }
    // A dual-stack key needs both families in the value, with one VNI.
    let (dual, value) = RECORDS[1];
    assert!(HostRecord::parse(dual, good).is_err());
    assert!(HostRecord::parse(dual, &value.replacen("\"VNI\":1", "\"VNI\":2", 1)).is_err());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(key in ".{0,60}", value in ".{0,200}") {
        if let Ok(record) = HostRecord::parse(&key, &value) {
            prop_assert_eq!(HostRecord::parse(&record.key(), &record.value()), Ok(record));
        }
    }
}
