//! How an instance is entered that nobody has told us the way into.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use procfs::process::Process;
use redis::{Cmd, ConnectionAddr, Value};
use secrecy::{ExposeSecret, SecretString};

use super::facts::{configuration, words};
use crate::engine::{
    foreign::aside,
    redis::{
        access::DEFAULT,
        flavor::Flavor,
        session::{BRIEF, Session, SessionError},
    },
};

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Where an instance is asked, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Door {
    socket: Option<PathBuf>,
    port: u16,
    /// Who may do something by the configuration files that may be the instance's, with his password.
    logins: Vec<(String, SecretString)>,
    folder: PathBuf,
}

// === impl Door ===

impl Door {
    pub(super) fn of(flavor: &Flavor, process: &Process, socket: Option<PathBuf>, port: u16) -> Self {
        let folder = Path::new("/etc").join(flavor.name);
        // A server writes its title over its command line, unless it is told not to.
        let named = process.cmdline().unwrap_or_default().into_iter().map(PathBuf::from);
        let named = named.skip(1).filter(|path| path.is_absolute());
        let packaged = fs::read_dir(&folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let packaged = packaged.filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
        let logins = named.chain(packaged).flat_map(|file| logins_in(&file)).collect();
        Self { socket, port, logins, folder }
    }

    /// To an instance whose configuration file is known.
    pub(super) fn with_configuration(socket: &Path, file: &Path) -> Self {
        let folder = file.parent().unwrap_or(file).to_owned();
        Self { socket: Some(socket.to_owned()), port: 0, logins: logins_in(file), folder }
    }

    pub(super) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// As whom it is entered first.
    pub(super) fn user(&self) -> &str {
        self.logins.first().map_or(DEFAULT, |(user, _)| user)
    }

    /// A session of somebody who may do everything, as far as that can be told; the error is a sentence with what to do.
    pub(super) async fn enter(&self) -> Result<Session, String> {
        let address = match &self.socket {
            Some(path) => ConnectionAddr::Unix(path.clone()),
            None => ConnectionAddr::Tcp("127.0.0.1".to_owned(), self.port),
        };
        let failed = |error: SessionError| format!("it does not answer the agent ({error})");
        let session = Session::open(address, CONNECT).await.map_err(failed)?;
        if let Ok(()) = session.tell(&["CONFIG", "GET", "port"]).await {
            return Ok(session);
        }
        let mut last = String::new();
        for (user, password) in &self.logins {
            let mut command = Cmd::new();
            command.arg("AUTH").arg(&[user, password.expose_secret()]);
            let entered = match session.ask::<Value>(&command, BRIEF).await {
                Ok(_) => session.tell(&["CONFIG", "GET", "port"]).await,
                Err(error) => Err(error),
            };
            match entered {
                Ok(()) => return Ok(session),
                Err(error) => last = format!("; {user} was answered with: {error}"),
            }
        }
        // Nobody needs a password, and CONFIG is what it does not know.
        if session.tell(&["PING"]).await.is_ok() {
            return Ok(session);
        }
        Err(format!(
            "it wants a password, and no configuration file in {} names one of somebody who may do everything{last}: write requirepass, \
             or a user with a password in plain text, into one",
            self.folder.display()
        ))
    }
}

/// Who has a password in a configuration file, or in what it was before an adoption.
fn logins_in(file: &Path) -> Vec<(String, SecretString)> {
    let before = aside(file);
    let lines = configuration(if before.exists() { &before } else { file });
    let mut logins = Vec::new();
    let mut upstream = (DEFAULT.to_owned(), None);
    for line in lines {
        match words(&line).iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["requirepass", password] => logins.push((DEFAULT.to_owned(), (*password).into())),
            ["masteruser", user] => (*user).clone_into(&mut upstream.0),
            ["masterauth", password] => upstream.1 = Some((*password).into()),
            ["user", name, words @ ..] => {
                let password = words.iter().find_map(|word| word.strip_prefix('>'));
                logins.extend(password.map(|password| ((*name).to_owned(), password.into())));
            }
            _ => {}
        }
    }
    // A replica logs in with this one elsewhere, which is most often the same everywhere.
    let (user, password) = upstream;
    logins.extend(password.map(|password| (user, password)));
    logins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_in_a_configuration_and_in_what_it_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("redis.conf");
        let text = "requirepass \"se cret\"\nmasterauth other\nuser root on >plain ~* +@all\nuser shop on #ab\n";
        fs::write(&file, text).unwrap();
        let found = |file: &Path| -> Vec<(String, String)> {
            logins_in(file).into_iter().map(|(user, password)| (user, password.expose_secret().to_owned())).collect()
        };
        let wanted = [(DEFAULT, "se cret"), ("root", "plain"), (DEFAULT, "other")];
        let wanted: Vec<_> =
            wanted.iter().map(|(user, password)| ((*user).to_owned(), (*password).to_owned())).collect();
        assert_eq!(found(&file), wanted);
        fs::rename(&file, aside(&file)).unwrap();
        fs::write(&file, "nothing\n").unwrap();
        assert_eq!(found(&file), wanted);
    }
}
