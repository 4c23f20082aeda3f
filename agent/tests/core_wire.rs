//! The agent's services over a real loopback connection with mutual TLS.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use regent_common::{
    error::{Reason, reason_of},
    ids::Epoch,
    topology::Role,
};
use regent_proto::{
    agent::v1::{
        self as wire, CancelJobRequest, ConfirmWholeRequest, CoordinatorHello, EndorseRequest, EndorseResponse,
        ExecuteRequest, GetLedgerRequest, HeartbeatAnswer, ListJobsRequest, OpenRequest, Revocations,
        execute_response::Event, job_service_client::JobServiceClient, open_request, open_response,
        peer_service_client::PeerServiceClient, session_service_client::SessionServiceClient,
        step_service_client::StepServiceClient,
    },
    types::v1::EngineState,
};
use support::{
    session::{Session, execute, hello, peer_of, request, spec_of},
    wire::{Agent, Authority, Holder},
    *,
};
use tonic::{Status, transport::Channel};

async fn assigned(authority: &Authority, coordinator: &Holder) -> (Agent, Channel) {
    let agent = authority.agent("n1").await;
    let channel = agent.channel(coordinator).await;
    let assign = wire::Assign { spec: Some(spec_of(&[&agent])), port: 0 };
    execute(&channel, request("db1", 1, 1, "assign", wire::action::Action::Assign(assign))).await.unwrap();
    (agent, channel)
}

fn state_is(heartbeat: &wire::Heartbeat, state: EngineState) -> bool {
    heartbeat.member.as_ref().is_some_and(|member| member.engine_state() == state)
}

#[tokio::test]
async fn a_step_brings_progress_and_a_result_and_is_answered_again() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel) = assigned(&authority, &coordinator).await;
    agent.machine.hold("clone");
    let clone = || {
        let source = Some(peer_of(1, &agent));
        wire::action::Action::Clone(wire::Clone { source, max_bytes_per_second: 0, wipe_first_if_needed: false })
    };
    let mut stream = StepServiceClient::new(channel.clone())
        .execute(request("db1", 1, 1, "clone", clone()))
        .await
        .unwrap()
        .into_inner();
    let first = within(stream.message()).await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::Progress(progress)) if progress.phase == "copying"));
    // The call breaks off; the step goes on, and shows as a job.
    drop(stream);
    let mut jobs = JobServiceClient::new(channel.clone());
    let running = jobs.list_jobs(ListJobsRequest {}).await.unwrap().into_inner().jobs;
    assert_eq!(running.iter().map(|job| job.action.as_str()).collect::<Vec<_>>(), ["clone"]);
    agent.machine.release("clone");
    let (_, joined) = execute(&channel, request("db1", 1, 1, "clone", clone())).await.unwrap();
    let (progress, answered) = execute(&channel, request("db1", 1, 1, "clone", clone())).await.unwrap();
    assert_eq!((joined.bytes_copied, &answered, progress.len()), (100, &joined, 0));
    let ledger = StepServiceClient::new(channel.clone()).get_ledger(GetLedgerRequest {}).await.unwrap().into_inner();
    let step = ledger.steps.iter().find(|step| step.step == "clone").unwrap();
    assert_eq!((step.executions, step.finished, agent.machine.count("clone")), (1, true, 1));
    assert_eq!((ledger.member.as_str(), ledger.epoch, ledger.token, ledger.revision), ("db1", 1, 1, 3));
    let gone = jobs.cancel_job(CancelJobRequest { operation: operation().to_string(), step: "clone".to_owned() }).await;
    assert_eq!(reason_of(&gone.unwrap_err()), Some(Reason::OperationNotFound));
}

#[tokio::test]
async fn a_stopped_agent_answers_from_its_ledger_when_it_is_back() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel) = assigned(&authority, &coordinator).await;
    let initialize = || request("db1", 1, 1, "init", wire::action::Action::Initialize(wire::Initialize {}));
    let configure = wire::Configure { spec: Some(spec_of(&[&agent])), fingerprint: String::new() };
    execute(&channel, request("db1", 1, 1, "configure", wire::action::Action::Configure(configure))).await.unwrap();
    let (_, before) = execute(&channel, initialize()).await.unwrap();
    drop(channel);
    let (machine, directory) = agent.end().await;
    assert_eq!(machine.count("kill") + machine.count("stop"), 0, "the engine was touched");
    let agent = authority.agent_on("n1", machine, directory).await;
    assert_eq!(agent.machine.count("configure"), 2, "what the cluster told its members is applied again");
    let channel = agent.channel(&coordinator).await;
    let (_, after) = execute(&channel, initialize()).await.unwrap();
    assert_eq!((after, agent.machine.count("initialize"), agent.machine.count("start")), (before, 1, 0));
}

#[tokio::test]
async fn bad_steps_are_refused_with_a_reason() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel) = assigned(&authority, &coordinator).await;
    let fence = || request("db1", 2, 2, "fence", wire::action::Action::Fence(wire::Fence {}));
    let refused = async |request: ExecuteRequest| reason_of(&execute(&channel, request).await.unwrap_err());
    let mut forged = fence();
    forged.header.as_mut().unwrap().digest = vec![0; 32];
    assert_eq!(refused(forged).await, Some(Reason::InvalidField));
    let mut nothing = fence();
    nothing.action = Some(wire::Action { action: None });
    nothing.header.as_mut().unwrap().digest = regent_agent::ledger::Digest::of(&[]).as_bytes().to_vec();
    assert_eq!(refused(nothing).await, Some(Reason::InvalidField));
    assert_eq!(refused(ExecuteRequest { header: None, action: None }).await, Some(Reason::InvalidField));
    let mut nameless = fence();
    nameless.header.as_mut().unwrap().cluster_id = "x".to_owned();
    assert_eq!(refused(nameless).await, Some(Reason::InvalidField));
    execute(&channel, fence()).await.unwrap();
    let late = request("db1", 1, 9, "promote", wire::action::Action::Promote(wire::Promote {}));
    assert_eq!(refused(late).await, Some(Reason::StaleEpoch));
    assert_eq!(agent.machine.count("promote"), 0);
}

#[tokio::test]
async fn only_the_coordinator_of_this_node_is_obeyed() {
    let authority = Authority::new();
    let agent = authority.agent("n1").await;
    for who in ["user/admin", "node/n2"] {
        let channel = agent.channel(&authority.issue(who)).await;
        let mut steps = StepServiceClient::new(channel.clone());
        let mut jobs = JobServiceClient::new(channel.clone());
        let mut sessions = SessionServiceClient::new(channel.clone());
        let opened = sessions.open(tokio_stream::iter([hello(1)])).await.map(|_| ());
        let operation = operation().to_string();
        for refused in [
            steps.execute(ExecuteRequest { header: None, action: None }).await.map(|_| ()),
            steps.get_ledger(GetLedgerRequest {}).await.map(|_| ()),
            jobs.list_jobs(ListJobsRequest {}).await.map(|_| ()),
            jobs.cancel_job(CancelJobRequest { operation, step: String::new() }).await.map(|_| ()),
            opened,
        ] {
            assert_eq!(reason_of(&refused.unwrap_err()), Some(Reason::WrongCaller), "{who}");
        }
        // Reflection is for anybody with a certificate, health for everybody.
        reflect(&channel).await.unwrap();
    }
    for caller in ["coordinator/c1", "user/admin", "node/n2"] {
        let channel = agent.channel(&authority.issue(caller)).await;
        let question = ConfirmWholeRequest { cluster_id: cluster_id().to_string(), token: 1, nonce: 1 };
        let refused = PeerServiceClient::new(channel).confirm_whole(question).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::WrongCaller), "{caller}");
    }
}

#[tokio::test]
async fn without_a_certificate_of_ours_only_health_is_told() {
    let authority = Authority::new();
    let agent = authority.agent("n1").await;
    let channel = agent.channel(&Authority::new().issue_beside("coordinator/c1", &authority)).await;
    let refused = StepServiceClient::new(channel.clone()).get_ledger(GetLedgerRequest {}).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::UnknownAuthority));
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert_eq!(reflect(&channel).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    health(&channel).await.unwrap();
}

async fn health(channel: &Channel) -> Result<(), Status> {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let request = HealthCheckRequest { service: "regent.agent.v1.StepService".to_owned() };
    HealthClient::new(channel.clone()).check(request).await.map(|_| ())
}

async fn reflect(channel: &Channel) -> Result<(), Status> {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter([list])).await?.into_inner();
    let answer = within(answers.message()).await?.expect("an answer");
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else { panic!("no list") };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for service in ["StepService", "JobService", "SessionService", "PeerService"] {
        assert!(names.contains(&format!("regent.agent.v1.{service}")), "{names:?}");
    }
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()));
    Ok(())
}

#[tokio::test]
async fn a_session_greets_and_pushes_what_changes() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel) = assigned(&authority, &coordinator).await;
    agent.machine.set_running(Role::Replica);
    let mut session = Session::open(&channel, hello(7)).await;
    let open_response::Message::Hello(greeting) = session.next().await.unwrap() else { panic!("no hello") };
    assert_eq!((greeting.node.as_str(), greeting.revision, greeting.stale_store), ("n1", 7, false));
    assert_eq!(greeting.engines.len(), 1);
    let first = session.until(|heartbeat| state_is(heartbeat, EngineState::Running)).await;
    assert!(first.nonce > 0);
    // A step that raises the epoch is seen at once, without a period.
    let prepare =
        request("db1", 2, 2, "prepare", wire::action::Action::Prepare(wire::Prepare { old_primary_fenced: false }));
    execute(&channel, prepare).await.unwrap();
    let raised = session.until(|heartbeat| heartbeat.member.as_ref().is_some_and(|member| member.epoch == 2)).await;
    assert!(raised.nonce > first.nonce);
    // The engine hangs, then dies: the look that waits for it does not delay the news.
    agent.machine.hold("observe");
    agent.machine.set_running(Role::Replica);
    agent.machine.crash();
    let crashed = session.until(|heartbeat| state_is(heartbeat, EngineState::Crashed)).await;
    assert!(crashed.nonce > raised.nonce);
    drop(session.out);
    let mut contact = agent.node.contact.subscribe();
    within(contact.wait_for(|contact| contact.sessions == 0)).await.unwrap();
}

#[tokio::test]
async fn running_steps_are_shown_in_heartbeats() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel) = assigned(&authority, &coordinator).await;
    let mut session = Session::open(&channel, hello(7)).await;
    agent.machine.hold("checkpoint");
    let checkpoint =
        request("db1", 1, 1, "checkpoint", wire::action::Action::Checkpoint(wire::Checkpoint { for_copies: true }));
    let executing = tokio::spawn({
        let channel = channel.clone();
        async move { execute(&channel, checkpoint).await.map(|_| ()) }
    });
    let open_response::Message::Hello(_) = session.next().await.unwrap() else { panic!("no hello") };
    session.until(|heartbeat| heartbeat.jobs.iter().any(|job| job.action == "checkpoint")).await;
    agent.machine.release("checkpoint");
    within(executing).await.unwrap().unwrap();
    session.until(|heartbeat| heartbeat.jobs.is_empty()).await;
}

#[tokio::test]
async fn an_older_store_is_told_so() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let agent = authority.agent("n1").await;
    let channel = agent.channel(&coordinator).await;
    let mut session = Session::open(&channel, hello(9)).await;
    let open_response::Message::Hello(_) = session.next().await.unwrap() else { panic!("no hello") };
    let mut older = Session::open(&channel, hello(8)).await;
    let open_response::Message::Hello(greeting) = older.next().await.unwrap() else { panic!("no hello") };
    assert!(greeting.stale_store);
    assert_eq!(greeting.revision, 9);
    // A coordinator of another installation, or one that does not say hello, gets no session.
    let other = CoordinatorHello { coordinator_id: "other".to_owned(), term: 1, revision: 1, heartbeat_millis: 1000 };
    let foreign = OpenRequest { message: Some(open_request::Message::Hello(other)) };
    let refused = Session::open(&channel, foreign).await.next().await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::ForeignCoordinator));
    let rude = OpenRequest { message: Some(open_request::Message::Revocations(Revocations { serials: Vec::new() })) };
    let refused = Session::open(&channel, rude).await.next().await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::InvalidField));
}

#[tokio::test]
async fn a_revoked_caller_is_refused_on_the_connection_it_has() {
    let authority = Authority::new();
    let (coordinator, second) = (authority.issue("coordinator/c1"), authority.issue("coordinator/c2"));
    let agent = authority.agent("n1").await;
    let (channel, revoked) = (agent.channel(&coordinator).await, agent.channel(&second).await);
    let ledger = async |channel: &Channel| {
        StepServiceClient::new(channel.clone()).get_ledger(GetLedgerRequest {}).await.map(|_| ())
    };
    ledger(&revoked).await.unwrap();
    let mut session = Session::open(&channel, hello(1)).await;
    let serials = vec![second.identity.serial()];
    let message = Some(open_request::Message::Revocations(Revocations { serials }));
    session.out.send(OpenRequest { message }).await.unwrap();
    let refused = within(async {
        loop {
            match ledger(&revoked).await {
                Ok(()) => tokio::task::yield_now().await,
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(reason_of(&refused), Some(Reason::CertificateRevoked));
    ledger(&channel).await.unwrap();
    session.next().await.unwrap();
}

/// Two agents of one cluster: db1 on n1 is the primary, db2 on n2 is to be wiped.
async fn pair(authority: &Authority, coordinator: &Holder) -> ((Agent, Channel), (Agent, Channel)) {
    let (first, second) = (authority.agent("n1").await, authority.agent("n2").await);
    let (to_first, to_second) = (first.channel(coordinator).await, second.channel(coordinator).await);
    for (member, channel) in [("db1", &to_first), ("db2", &to_second)] {
        let spec = spec_of(&[&first, &second]);
        let assign = wire::action::Action::Assign(wire::Assign { spec: Some(spec), port: 0 });
        execute(channel, request(member, 1, 1, "assign", assign)).await.unwrap();
    }
    first.machine.set_running(Role::Primary);
    second.machine.set_running(Role::Replica);
    ((first, to_first), (second, to_second))
}

#[tokio::test]
async fn a_wipe_needs_the_word_of_the_copy_that_survives() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let ((first, to_first), (second, to_second)) = pair(&authority, &coordinator).await;
    let swap = || {
        let swap = wire::Swap { upstream: Some(peer_of(0, &first)), keep_old: true };
        request("db2", 1, 2, "swap", wire::action::Action::Swap(swap))
    };
    let refused = async || {
        let status = execute(&to_second, swap()).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::CopyNotWhole));
        assert_eq!(second.machine.count("swap"), 0);
        status.message().to_owned()
    };
    assert!(refused().await.contains("token"), "the source has not taken on the token of this resync");
    let checkpoint =
        request("db1", 1, 2, "checkpoint", wire::action::Action::Checkpoint(wire::Checkpoint { for_copies: true }));
    execute(&to_first, checkpoint).await.unwrap();
    first.machine.set_dirty(true);
    assert!(refused().await.contains("in the middle of a change"));
    first.machine.set_dirty(false);
    first.machine.crash();
    assert!(refused().await.contains("not running"));
    first.machine.set_running(Role::Primary);
    execute(&to_second, swap()).await.unwrap();
    assert_eq!(second.machine.count("swap"), 1);
    assert_eq!(first.node.ledger().read().membership.as_ref().unwrap().epoch, Epoch(1));
}

#[tokio::test]
async fn a_wipe_is_refused_when_the_other_agent_is_away_or_another() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let ((first, _), (second, to_second)) = pair(&authority, &coordinator).await;
    let wipe = |upstream: wire::Peer, token: u64| {
        let clone = wire::Clone { source: Some(upstream), max_bytes_per_second: 0, wipe_first_if_needed: true };
        request("db2", 1, token, "clone", wire::action::Action::Clone(clone))
    };
    // At the named address is another node than the one that is meant.
    let mistaken = wire::Peer { node: "n3".to_owned(), ..peer_of(0, &first) };
    let status = execute(&to_second, wipe(mistaken, 2)).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::CopyNotWhole));
    let upstream = peer_of(0, &first);
    first.end().await;
    let status = execute(&to_second, wipe(upstream, 3)).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::CopyNotWhole));
    assert_eq!(second.machine.count("clone"), 0);
}

fn question() -> EndorseRequest {
    let lease = regent_proto::types::v1::LeaseReport { epoch: 1, stands: true, ..Default::default() };
    EndorseRequest {
        cluster_id: cluster_id().to_string(),
        member: "db1".to_owned(),
        epoch: 1,
        nonce: 77,
        boot_id: "boot".to_owned(),
        ttl_millis: 60_000,
        lease: Some(lease),
        position: None,
    }
}

async fn endorse(channel: &Channel, question: EndorseRequest) -> Result<EndorseResponse, Status> {
    within(PeerServiceClient::new(channel.clone()).endorse(question)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn who_has_endorsed_is_not_prepared_meanwhile_and_endorses_nothing_lower_afterwards() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let ((_first, _), (second, to_second)) = pair(&authority, &coordinator).await;
    let from_first = second.channel(&authority.issue("node/n1")).await;
    let answer = endorse(&from_first, question()).await.unwrap();
    assert_eq!((answer.endorsed, answer.nonce, answer.known_epoch), (true, 77, 1));
    let longest = second.node.ledger().read().membership.as_ref().unwrap().longest_ttl_millis;
    assert_eq!(longest, Some(60_000), "it is on disk before the promise is given");
    let prepare = |old_primary_fenced, token| {
        let prepare = wire::action::Action::Prepare(wire::Prepare { old_primary_fenced });
        request("db2", 2, token, "prepare", prepare)
    };
    let refused = execute(&to_second, prepare(false, 2)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::PromiseStands));
    assert_eq!(second.machine.count("cut"), 0);
    // The higher epoch is kept all the same: what asked before is not endorsed again.
    let answer = endorse(&from_first, question()).await.unwrap();
    assert_eq!((answer.endorsed, answer.known_epoch), (false, 2));
    // With the old primary's fence answer the promise is released.
    execute(&to_second, prepare(true, 3)).await.unwrap();
    assert_eq!(second.machine.count("cut"), 1);
}

#[tokio::test]
async fn questions_for_endorsement_that_make_no_sense_are_refused() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let ((_first, _), (second, to_second)) = pair(&authority, &coordinator).await;
    let from = async |who: &str| second.channel(&authority.issue(who)).await;
    let (from_first, from_second) = (from("node/n1").await, from("node/n2").await);
    let (from_stranger, from_user) = (from("node/n9").await, from("user/admin").await);
    let from_elsewhere = second.channel(&Authority::new().issue_beside("node/n1", &authority)).await;
    let other_cluster = regent_common::ids::ClusterId::from_parts(9, 9).to_string();
    let before = second.node.ledger().read();
    for (channel, question, reason) in [
        (&from_stranger, question(), Reason::WrongCaller),
        (&to_second, question(), Reason::WrongCaller),
        (&from_user, question(), Reason::WrongCaller),
        (&from_elsewhere, question(), Reason::UnknownAuthority),
        (&from_first, EndorseRequest { cluster_id: other_cluster, ..question() }, Reason::WrongCluster),
        (&from_first, EndorseRequest { cluster_id: String::new(), ..question() }, Reason::WrongCluster),
        (&from_first, EndorseRequest { member: "db2".to_owned(), ..question() }, Reason::WrongMember),
        (&from_second, question(), Reason::WrongMember),
        (&from_first, EndorseRequest { member: "db9".to_owned(), ..question() }, Reason::WrongMember),
        (&from_first, EndorseRequest { member: "No Name".to_owned(), ..question() }, Reason::InvalidField),
        (&from_first, EndorseRequest { boot_id: String::new(), ..question() }, Reason::InvalidField),
        (&from_first, EndorseRequest { lease: None, ..question() }, Reason::InvalidField),
        // Shorter than three heartbeats of any profile, and longer than anybody is granted.
        (&from_first, EndorseRequest { ttl_millis: 0, ..question() }, Reason::InvalidField),
        (&from_first, EndorseRequest { ttl_millis: 149, ..question() }, Reason::InvalidField),
        (&from_first, EndorseRequest { ttl_millis: 120_001, ..question() }, Reason::InvalidField),
        (&from_first, EndorseRequest { ttl_millis: u32::MAX, ..question() }, Reason::InvalidField),
    ] {
        let status = endorse(channel, question.clone()).await.unwrap_err();
        assert_eq!(reason_of(&status), Some(reason), "{question:?}");
        assert!(status.message().len() > 10, "{status:?}");
    }
    let ledger = second.node.ledger().read();
    assert_eq!(ledger, before, "nothing of it is kept");
    let told = second.node.lease.authority(&ledger);
    assert!(told.prepare_in.is_zero(), "nothing was promised to any of them: {told:?}");
    assert_eq!(told.heard, None, "and nothing that they said is passed on");
    // The same question, as it should be, is heard and promised: what was looked at above does show it.
    assert!(endorse(&from_first, question()).await.unwrap().endorsed);
    let told = second.node.lease.authority(&second.node.ledger().read());
    assert!(!told.prepare_in.is_zero() && told.heard.is_some(), "{told:?}");
}

#[tokio::test]
async fn an_engine_becomes_writable_only_under_a_grant_that_is_meant_for_it() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let agent = authority.agent_without_leases("n1", Machine::new(), tempfile::tempdir().unwrap()).await;
    let channel = agent.channel(&coordinator).await;
    let assign = wire::Assign { spec: Some(spec_of(&[&agent])), port: 0 };
    execute(&channel, request("db1", 1, 1, "assign", wire::action::Action::Assign(assign))).await.unwrap();
    let mut session = Session::open(&channel, hello(7)).await;
    let open_response::Message::Hello(_) = session.next().await.unwrap() else { panic!("no hello") };
    let initialize = request("db1", 1, 1, "initialize", wire::action::Action::Initialize(wire::Initialize {}));
    let initializing = tokio::spawn({
        let channel = channel.clone();
        async move { execute(&channel, initialize).await.map(|_| ()) }
    });
    let grant = || wire::Grant {
        cluster_id: cluster_id().to_string(),
        member: "db1".to_owned(),
        epoch: 1,
        ttl_millis: 60_000,
        electorate: Some(regent_proto::types::v1::Electorate { version: 1, members: Vec::new() }),
        established: true,
        handed_over: None,
    };
    let answer = |nonce, grant| {
        let answer = HeartbeatAnswer { nonce, grant, stored_epoch: 1, heartbeat_millis: 50, ttl_millis: 60_000 };
        OpenRequest { message: Some(open_request::Message::Answer(answer)) }
    };
    let other_cluster = regent_common::ids::ClusterId::from_parts(9, 9).to_string();
    let mut replayed = 0;
    for wrong in [
        wire::Grant { cluster_id: other_cluster, ..grant() },
        wire::Grant { member: "db2".to_owned(), ..grant() },
        wire::Grant { epoch: 2, ..grant() },
        wire::Grant { epoch: 0, ..grant() },
        wire::Grant { established: false, ..grant() },
        wire::Grant { ttl_millis: 0, ..grant() },
        wire::Grant { electorate: None, ..grant() },
    ] {
        replayed = session.heartbeat().await.nonce;
        session.out.send(answer(replayed, Some(wrong.clone()))).await.unwrap();
        session.heartbeat().await;
        assert!(agent.node.lease.standing().is_none(), "{wrong:?}");
    }
    // An answer to a heartbeat that was answered already, and one to none at all.
    for nonce in [replayed, 1] {
        session.out.send(answer(nonce, Some(grant()))).await.unwrap();
        session.heartbeat().await;
        assert!(agent.node.lease.standing().is_none());
    }
    assert_eq!(agent.machine.count("initialize"), 0, "the engine was not made writable");
    let nonce = session.until(|heartbeat| heartbeat.member.is_some()).await.nonce;
    session.out.send(answer(nonce, Some(grant()))).await.unwrap();
    within(initializing).await.unwrap().unwrap();
    assert_eq!(agent.machine.count("initialize"), 1);
    let told = session.until(|heartbeat| {
        let authority = heartbeat.member.as_ref().and_then(|member| member.authority.as_ref());
        authority.is_some_and(|authority| authority.established && authority.electorate.is_some())
    });
    told.await;
}

#[tokio::test]
async fn a_drain_does_not_outlive_the_agent_that_watched_over_it() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let ((agent, channel), _) = pair(&authority, &coordinator).await;
    let initialize = wire::action::Action::Initialize(wire::Initialize {});
    execute(&channel, request("db1", 1, 1, "initialize", initialize)).await.unwrap();
    let drain = wire::Drain { successor: "db2".to_owned(), within_millis: 1000, hold_millis: 60_000 };
    execute(&channel, request("db1", 1, 1, "drain", wire::action::Action::Drain(drain))).await.unwrap();
    let drained = |agent: &Agent| agent.node.ledger().read().membership.as_ref().unwrap().drained;
    assert!(drained(&agent).is_some());
    assert_eq!(agent.machine.count("undo_drain"), 0);
    drop(channel);
    let (machine, directory) = agent.end().await;
    let agent = authority.agent_on("n1", machine, directory).await;
    assert_eq!(drained(&agent), None, "before anything is taken up again");
    called(&agent.machine, "undo_drain", 1).await;
}
