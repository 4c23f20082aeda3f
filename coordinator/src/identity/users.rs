//! Users: made, listed, revoked; and the renewal of a caller's own certificate.

use std::collections::BTreeSet;

use regent_common::{
    error::Reason,
    identity::{Identity, Principal},
    ids::UserName,
};

use super::{Identities, IdentityError, retrying};
use crate::{
    model::user::{UserRecord, UserRole},
    pki::PublicKey,
    store::{StoreError, Transaction, Versioned, get_json, keys, list_json},
};

/// Who is to become a user.
#[derive(Debug)]
pub struct UserWish {
    /// Name.
    pub name: UserName,
    /// What it may do.
    pub role: UserRole,
    /// Its key.
    pub key: PublicKey,
}

/// A new user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// The record.
    pub record: UserRecord,
    /// Its certificate with the authority's, in PEM; `None` when the wish was only checked.
    pub certificate: Option<String>,
}

// === impl Identities ===

impl Identities {
    /// Makes a user, or one of a revoked user's name. With `validate_only` it is checked and nothing is made.
    pub async fn create_user(
        &self,
        wish: &UserWish,
        actor: &str,
        validate_only: bool,
    ) -> Result<NewUser, IdentityError> {
        retrying!(self.try_create_user(wish, actor, validate_only))
    }

    async fn try_create_user(
        &self,
        wish: &UserWish,
        actor: &str,
        validate_only: bool,
    ) -> Result<NewUser, IdentityError> {
        let key = keys::user(&wish.name);
        let transaction = match get_json::<UserRecord>(self.store(), &key).await? {
            None => Transaction::default().require_absent(key.clone()),
            Some(stored) if stored.value.revoked => Transaction::default().require_version(key.clone(), stored.version),
            Some(_) => {
                let message = format!("there is a user {} already; nothing was changed", wish.name);
                return Err(IdentityError::refused(Reason::NameTaken, message));
            }
        };
        let mut record = UserRecord {
            name: wish.name.clone(),
            role: wish.role,
            revoked: false,
            created_at: self.now(),
            created_by: actor.to_owned(),
            certificate_not_after: None,
            serials: Vec::new(),
        };
        if validate_only {
            return Ok(NewUser { record, certificate: None });
        }
        let principal = Principal::User(wish.name.clone());
        let (issued, transaction) = self.issue(transaction, principal, BTreeSet::new(), &wish.key, actor)?;
        record.certificate_not_after = Some(issued.not_after);
        record.serials = vec![issued.serial];
        self.store().commit(transaction.put_json(key, &record)).await?;
        Ok(NewUser { record, certificate: Some(issued.chain_pem) })
    }

    /// All users, sorted by name.
    pub async fn users(&self) -> Result<Vec<UserRecord>, StoreError> {
        let rows = list_json::<UserRecord>(self.store(), keys::USERS).await?;
        Ok(rows.into_iter().map(|(_, stored)| stored.value).collect())
    }

    /// Revokes a user and all its certificates; again does no harm. The last administrator stays.
    pub async fn revoke_user(&self, name: &UserName) -> Result<UserRecord, IdentityError> {
        retrying!(self.try_revoke_user(name))
    }

    async fn try_revoke_user(&self, name: &UserName) -> Result<UserRecord, IdentityError> {
        let now = self.now();
        let Versioned { value: mut record, version } = self.user(name).await?;
        let key = keys::user(name);
        let mut transaction = Transaction::default().require_version(key.clone(), version);
        if record.role == UserRole::Admin && !record.revoked {
            let rows = list_json::<UserRecord>(self.store(), keys::USERS).await?;
            let usable = |user: &UserRecord| {
                user.role == UserRole::Admin && !user.revoked && user.certificate_not_after.is_some_and(|end| end > now)
            };
            let other = rows.into_iter().find(|(_, stored)| stored.value.name != *name && usable(&stored.value));
            let Some((other, stored)) = other else {
                let problem = format!("{name} is the last administrator: make another one first; nothing was changed");
                return Err(IdentityError::field("name", problem));
            };
            // Two administrators that revoke each other at once must not both succeed.
            transaction = transaction.require_version(other, stored.version);
        }
        record.revoked = true;
        let transaction = self.end_certificates(transaction, &record.serials, now).await?;
        self.store().commit(transaction.put_json(key, &record)).await?;
        self.publish(record.serials.clone());
        Ok(record)
    }

    /// Gives a node or a user a new certificate for the key; those before stay good until they end.
    pub async fn renew(
        &self,
        caller: &Identity,
        serial: Option<&str>,
        key: &PublicKey,
    ) -> Result<String, IdentityError> {
        match &caller.principal {
            Principal::Node(name) => retrying!(self.try_renew_node(name, serial, key)),
            Principal::User(name) => retrying!(self.try_renew_user(name, serial, key)),
            Principal::Coordinator(_) => {
                let message = "a coordinator renews its own certificate by itself; nothing was changed";
                Err(IdentityError::refused(Reason::WrongCaller, message))
            }
        }
    }

    async fn try_renew_user(
        &self,
        name: &UserName,
        serial: Option<&str>,
        key: &PublicKey,
    ) -> Result<String, IdentityError> {
        let Versioned { value: mut record, version } = self.user(name).await?;
        if record.revoked {
            return Err(revoked_certificate(format!("user {name} is revoked")));
        }
        require_counted(&record.serials, serial, &format!("user {name}"))?;
        let store_key = keys::user(name);
        let transaction = Transaction::default().require_version(store_key.clone(), version);
        let principal = Principal::User(name.clone());
        let (issued, transaction) = self.issue(transaction, principal, BTreeSet::new(), key, "renewal")?;
        record.serials = self.unended(&record.serials, self.now()).await?;
        record.serials.push(issued.serial);
        record.certificate_not_after = Some(issued.not_after);
        self.store().commit(transaction.put_json(store_key, &record)).await?;
        Ok(issued.chain_pem)
    }

    async fn user(&self, name: &UserName) -> Result<Versioned<UserRecord>, IdentityError> {
        get_json::<UserRecord>(self.store(), &keys::user(name)).await?.ok_or_else(|| {
            let message = format!("there is no user {name}: see `regentctl user list`; nothing was changed");
            IdentityError::refused(Reason::UserNotFound, message)
        })
    }
}

pub(super) fn revoked_certificate(what: String) -> IdentityError {
    IdentityError::refused(Reason::CertificateRevoked, format!("{what}: its certificates are refused"))
}

/// The caller's certificate must be one of those that count for its record: not one from before a re-enrollment.
pub(super) fn require_counted(serials: &[String], serial: Option<&str>, who: &str) -> Result<(), IdentityError> {
    if serial.is_some_and(|serial| serials.iter().any(|counted| counted == serial)) {
        return Ok(());
    }
    Err(revoked_certificate(format!("the certificate of {who} was replaced by another enrollment")))
}
