//! Certificates for etcd and its clients, also wrong ones.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// A directory with a certificate authority, a server's and clients' certificates and their keys, in PEM.
pub struct Tls {
    directory: PathBuf,
}

/// A certificate and its key, as the files that a client is configured with.
pub struct Identity {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The private key's file.
    pub key: PathBuf,
}

impl Tls {
    /// Makes all of them for a server that is reached at some addresses.
    pub(super) fn make(directory: &Path, addresses: &[IpAddr]) -> Self {
        fs::create_dir_all(directory).expect("make the directory of certificates");
        let tls = Self { directory: directory.to_owned() };
        let authority = tls.authority("ca");
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        tls.issue("server", &authority, &names, Validity::Now);
        tls.issue("server-expired", &authority, &names, Validity::Past);
        tls.issue("client", &authority, &[], Validity::Now);
        tls.issue("client-expired", &authority, &[], Validity::Past);
        tls.issue("client-foreign", &tls.authority("ca-foreign"), &[], Validity::Now);
        tls
    }

    /// The authority that signed the server's certificate.
    pub fn ca(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// Another authority, which signed nothing that the server shows or accepts.
    pub fn foreign_ca(&self) -> PathBuf {
        self.file("ca-foreign.crt")
    }

    /// What the server accepts of a client.
    pub fn client(&self) -> Identity {
        self.identity("client")
    }

    /// A client whose time is over.
    pub fn expired_client(&self) -> Identity {
        self.identity("client-expired")
    }

    /// A client of the other authority.
    pub fn foreign_client(&self) -> Identity {
        self.identity("client-foreign")
    }

    /// Lets the server show a certificate whose time is over. etcd reads its certificate for each connection.
    pub fn expire_server(&self) {
        let (expired, server) = (self.identity("server-expired"), self.server());
        fs::copy(expired.key, server.key).expect("replace the server's key");
        fs::copy(expired.certificate, server.certificate).expect("replace the server's certificate");
    }

    pub(super) fn server(&self) -> Identity {
        self.identity("server")
    }

    fn identity(&self, name: &str) -> Identity {
        Identity { certificate: self.file(&format!("{name}.crt")), key: self.file(&format!("{name}.key")) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.self_signed(&key).expect("sign an authority's certificate");
        fs::write(self.file(&format!("{name}.crt")), certificate.pem()).expect("write a certificate");
        Issuer::new(params, key)
    }

    fn issue(&self, name: &str, authority: &Issuer<'_, KeyPair>, names: &[String], validity: Validity) {
        let mut params = CertificateParams::new(names).expect("addresses are names of a server");
        params.distinguished_name.push(DnType::CommonName, name);
        // The server's is a client's too: etcd's HTTP gateway calls its own gRPC port with it.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        if let Validity::Past = validity {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.signed_by(&key, authority).expect("sign a certificate");
        let files = self.identity(name);
        fs::write(files.certificate, certificate.pem()).expect("write a certificate");
        fs::write(files.key, key.serialize_pem()).expect("write a key");
    }
}

#[derive(Clone, Copy)]
enum Validity {
    Now,
    Past,
}
