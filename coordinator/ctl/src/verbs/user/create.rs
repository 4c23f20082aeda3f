//! `user create`: makes the key here, has its certificate signed, and writes an identity directory.
//!
//! **Invariant:** the key never leaves this machine, and an identity that is there already is never overwritten.

use std::{
    fs::{DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use regent_common::{clock::wall_now, identity::IdentityDirectory};
use regent_proto::coordinator::v1 as wire;
use secrecy::SecretString;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, table},
};

/// Create a user: make a key here, have it signed, write an identity directory
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the user: a DNS label
    name: String,
    /// What the user may do
    #[arg(long, value_enum)]
    role: Role,
    /// Directory for cert.pem, key.pem and ca.pem; made with mode 0700, must not hold an identity
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Change nothing; say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Role {
    /// Read.
    Viewer,
    /// Everyday verbs.
    Operator,
    /// Everything.
    Admin,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("create user {}", arguments.name));
    let connection = context.connect(&call).await?;
    if !arguments.dry_run {
        prepare(&arguments.out)
            .map_err(|error| Failure::local(&format!("use {} for an identity", arguments.out.display()), &error))?;
    }
    let (key_pem, certificate_request_pem) =
        key_and_request(&arguments.name).map_err(|error| Failure::local("make a key", &error))?;
    let role = match arguments.role {
        Role::Viewer => wire::UserRole::Viewer,
        Role::Operator => wire::UserRole::Operator,
        Role::Admin => wire::UserRole::Admin,
    };
    let message = wire::CreateUserRequest {
        user: arguments.name.clone(),
        role: role.into(),
        certificate_request_pem,
        request_id: context.request_id(),
        validate_only: arguments.dry_run,
    };
    let answer = connection.identities().create_user(request(message)).await.map_err(|status| call.failed(status))?;
    let answer = answer.into_inner();
    if arguments.dry_run {
        context.output.note("Dry run: nothing has been changed. It would be:");
    } else {
        IdentityDirectory::new(&arguments.out)
            .store(&answer.certificate_pem, &key_pem, &answer.ca_pem)
            .map_err(|error| Failure::local(&format!("write the identity to {}", arguments.out.display()), &error))?;
        context.output.note(format!("The identity is in {0}: use it with --identity {0}", arguments.out.display()));
    }
    let users: Vec<_> = answer.user.into_iter().collect();
    context.output.data(|| table::users(&users, wall_now()), || json::list("users", &users));
    Ok(())
}

/// Makes the directory, or takes an empty one, before the coordinator is asked: a user without a place for its key would
/// have to be revoked.
fn prepare(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for file in ["cert.pem", "key.pem"] {
        if directory.join(file).try_exists()? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("it holds a {file} already")));
        }
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))
}

fn key_and_request(name: &str) -> Result<(SecretString, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(Vec::<String>::new())?;
    // The coordinator decides what the certificate says; the name here is for people who look at the request.
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    parameters.distinguished_name = subject;
    let signing_request = parameters.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem().into(), signing_request))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn an_identity_that_is_there_is_not_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("new");
        prepare(&directory).unwrap();
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        prepare(&directory).unwrap();
        std::fs::write(directory.join("key.pem"), "mine").unwrap();
        assert_eq!(prepare(&directory).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(directory.join("key.pem")).unwrap(), "mine");
    }

    #[test]
    fn every_request_has_a_key_of_its_own() {
        let (first, request) = key_and_request("ann").unwrap();
        let (second, _) = key_and_request("ann").unwrap();
        assert_ne!(first.expose_secret(), second.expose_secret());
        assert!(request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{request}");
        assert!(!request.contains("PRIVATE"));
    }
}
