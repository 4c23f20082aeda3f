//! The tree of verbs. A verb is one file with `Arguments` (its doc comment is the help) and `run`; the list below
//! registers it. To add one: copy a file, name it in the `mod` lines of its folder, add a line here.
//!
//! **Invariant:** a verb makes one call that changes something at most, so that one request id covers it.

mod arguments;
mod audit;
mod cluster;
mod completions;
mod engine;
mod events;
mod node;
mod operation;
mod token;
mod user;

use clap::Subcommand;

use crate::{connection::Context, failure::Failure};

macro_rules! registry {
    (
        nouns { $($(#[doc = $noun_help:literal])* $Noun:ident($Verbs:ident) in $folder:ident { $($Verb:ident = $file:ident,)* })* }
        verbs { $($Alone:ident = $alone:ident,)* }
    ) => {
        /// What to do: a noun with its verbs, or a verb that stands alone.
        #[derive(Debug, Subcommand)]
        pub enum Noun {
            $(
                $(#[doc = $noun_help])*
                #[command(subcommand)]
                $Noun($Verbs),
            )*
            $(
                #[allow(missing_docs, reason = "the arguments carry the help")]
                $Alone($alone::Arguments),
            )*
        }

        $(
            $(#[doc = $noun_help])*
            #[derive(Debug, Subcommand)]
            #[allow(missing_docs, reason = "the arguments carry the help")]
            pub enum $Verbs {
                $($Verb($folder::$file::Arguments),)*
            }
        )*

        impl Noun {
            /// Does it.
            pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
                // Boxed: the future of the whole tree would be as large as that of its largest verb.
                match self {
                    $($(Self::$Noun($Verbs::$Verb(arguments)) => Box::pin($folder::$file::run(context, arguments)).await,)*)*
                    $(Self::$Alone(arguments) => Box::pin($alone::run(context, arguments)).await,)*
                }
            }
        }
    };
}

registry! {
    nouns {
        /// Clusters: make, look at, grow, shrink, resync, delete
        Cluster(ClusterVerb) in cluster {
            Create = create,
            Adopt = adopt,
            List = list,
            Show = show,
            Resync = resync,
            Compare = compare,
            Failover = failover,
            Promote = promote,
            AddMember = add_member,
            RemoveMember = remove_member,
            Delete = delete,
            Protect = protect,
            Unprotect = unprotect,
            Allow = allow,
            Credentials = credentials,
            Label = label,
            Profile = profile,
            Policy = policy,
            Pause = pause,
            Resume = resume,
        }
        /// Nodes: machines with an agent
        Node(NodeVerb) in node {
            List = list,
            Show = show,
            Revoke = revoke,
        }
        /// Operations: durable changes, running and past
        Operation(OperationVerb) in operation {
            List = list,
            Show = show,
            Watch = watch,
            Cancel = cancel,
        }
        /// Join tokens: how a machine becomes a node
        Token(TokenVerb) in token {
            Create = create,
        }
        /// Users: who may do what
        User(UserVerb) in user {
            Create = create,
            List = list,
            Revoke = revoke,
        }
        /// Engines: what clusters can be made of
        Engine(EngineVerb) in engine {
            List = list,
        }
    }
    verbs {
        Audit = audit,
        Events = events,
        Completions = completions,
    }
}
