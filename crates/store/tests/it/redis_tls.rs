//! `rediss://` against a real server with a certificate of an authority that the test makes.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use store::{OpenError, StoreError};

use crate::chunks::{Questions, get, key, limits, noise, put, soon};
use crate::servers::{Server, program};

/// Writes `ca.pem`, and `server.pem` and `server.key` for these names.
fn certificates(dir: &Path, names: &[&str]) {
    let mut authority = CertificateParams::new(Vec::new()).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than the server's, or OpenSSL takes that for an issuer of itself.
    authority.distinguished_name.push(DnType::CommonName, "authority");
    let authority_key = KeyPair::generate().expect("a key");
    let ca = authority.self_signed(&authority_key).expect("a certificate");
    let issuer = Issuer::new(authority, authority_key);
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let server_key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(names).expect("names").signed_by(&server_key, &issuer).expect("a certificate");
    for (name, text) in [("ca.pem", ca.pem()), ("server.pem", server.pem()), ("server.key", server_key.serialize_pem())]
    {
        fs::write(dir.join(name), text).expect("write");
    }
}

#[test]
fn chunks_go_through_tls_and_only_to_whom_the_authority_vouches_for() {
    let Some(program) = program() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    certificates(dir.path(), &["localhost", "127.0.0.1", "kv.example"]);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let server = Server::start(
        program,
        &[
            "--port",
            "0",
            "--tls-port",
            "PORT",
            "--tls-auth-clients",
            "no",
            "--requirepass",
            "secret", //
            "--tls-cert-file",
            &file("server.pem"),
            "--tls-key-file",
            &file("server.key"), //
            "--tls-ca-cert-file",
            &file("ca.pem"),
        ],
    );
    let url = |host: &str, more: &str| format!("rediss://:secret@{host}:{}?{more}", server.port);
    let ca = format!("ca={}", file("ca.pem"));
    for (host, more) in
        [("127.0.0.1", ca.clone()), ("localhost", ca.clone()), ("127.0.0.1", format!("{ca}&server-name=kv.example"))]
    {
        let store = store::open(&url(host, &more), &limits()).expect("a server that is vouched for");
        let lengths = [1, 4096, 70_000, 1 << 20];
        let blocks: Vec<_> = lengths.iter().map(|&bytes| noise(bytes as u64, bytes)).collect();
        put(&*store, 0, &key(1), &blocks, b"manifest").expect("put");
        let (manifest, found) = get(&*store, 0, &key(1), &lengths).expect("get");
        assert!(manifest == b"manifest" && found == blocks);
        assert_eq!(store.lookup(&[key(1), key(2)], soon()), Ok(1));
        assert_eq!(store.open(0, &key(2), &mut [0; 4096], soon()), Err(StoreError::Miss));
    }
    let open = |url: &str| store::open::<Vec<u8>>(url, &limits()).expect_err(url);
    // The system's authorities do not know ours; the name must be in the certificate; a plain client is not understood.
    for url in [url("127.0.0.1", ""), url("127.0.0.1", &format!("{ca}&server-name=other.example"))] {
        let error = open(&url);
        let refused = matches!(&error, OpenError::Unreachable { what, .. } if what.contains("certificate"))
            || matches!(&error, OpenError::Option { what, .. } if what.contains("authorities"));
        assert!(refused, "{error}");
    }
    assert!(matches!(open(&format!("redis://:secret@127.0.0.1:{}", server.port)), OpenError::Unreachable { .. }));
    let error = open(&format!("rediss://127.0.0.1?ca={}", file("server.key")));
    assert!(error.to_string().contains("PEM file of authorities"), "{error}");
}

#[test]
fn a_client_certificate_is_given_where_it_is_asked_for_and_missed_with_advice_where_not() {
    let Some(program) = program() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    certificates(dir.path(), &["127.0.0.1"]);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (ca, cert, key_file) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let tls = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "yes", "--tls-ca-cert-file", &ca];
    let server = Server::start(program, &[&tls[..], &["--tls-cert-file", &cert, "--tls-key-file", &key_file]].concat());
    let url = format!("rediss://127.0.0.1:{}?ca={ca}", server.port);
    let store = store::open::<Vec<u8>>(&format!("{url}&cert={cert}&key={key_file}"), &limits()).expect("taken");
    put(&*store, 0, &key(1), &[noise(1, 70_000)], b"m").expect("put");
    let error = store::open::<Vec<u8>>(&url, &limits()).expect_err("without one").to_string();
    assert!(error.contains("client certificate") && error.contains("cert=PATH&key=PATH"), "{error}");
    let error = store::open::<Vec<u8>>(&format!("{url}&cert={ca}&key={key_file}"), &limits()).expect_err("another's");
    assert!(error.to_string().contains("does key= belong to it?"), "{error}");
}

#[test]
fn one_self_signed_certificate_for_both_is_taken_or_said_how() {
    let Some(program) = program() else { return };
    for (kind, taken) in
        [(IsCa::ExplicitNoCa, true), (IsCa::NoCa, true), (IsCa::Ca(BasicConstraints::Unconstrained), false)]
    {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        parameters.is_ca = kind;
        let key_pair = KeyPair::generate().expect("a key");
        let file = |name: &str| dir.path().join(name).display().to_string();
        fs::write(file("own.pem"), parameters.self_signed(&key_pair).expect("a certificate").pem()).expect("write");
        fs::write(file("own.key"), key_pair.serialize_pem()).expect("write");
        let (own, key_file) = (file("own.pem"), file("own.key"));
        let tls = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "no", "--tls-ca-cert-file", &own];
        let server =
            Server::start(program, &[&tls[..], &["--tls-cert-file", &own, "--tls-key-file", &key_file]].concat());
        let opened = store::open::<Vec<u8>>(&format!("rediss://127.0.0.1:{}?ca={own}", server.port), &limits());
        match opened {
            Ok(_) => assert!(taken, "{kind:?}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!taken && error.contains("self-signed") && error.contains("CA:FALSE"), "{kind:?}: {error}");
            }
        }
    }
}
