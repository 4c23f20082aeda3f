//! The machines themselves: what the other tests rest on.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::ensure;
use regent_tests::{
    folder::TestFolder,
    network::CLIENTS,
    process,
    vm::{Image, System, Systems},
    wait,
};

use crate::support::{SOON, inside};

/// Whether a packet from a machine reaches another and is answered: nobody listens there, and that is said at once.
fn reaches(from: &System, address: &str) -> bool {
    let try_it = format!("timeout 1 bash -c '</dev/tcp/{address}/9' 2>&1 || true");
    from.shell(&try_it).unwrap().contains("refused")
}

/// Starts a service that leaves a word when it is told to end.
const GOODBYE: &str = "systemd-run --quiet --unit goodbye --property 'ExecStop=touch /root/goodbye' sleep 1000";

fn boot_id(system: &System) -> String {
    system.run(&["cat", "/proc/sys/kernel/random/boot_id"]).unwrap()
}

#[test]
fn machines_are_apart_from_each_other_and_from_the_host() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let systems = Systems::new(&folder, Image::Empty, &["one", "two"]).unwrap();
        systems.boot().unwrap();
        let (one, two) = (systems.system("one").unwrap(), systems.system("two").unwrap());
        assert_eq!(one.run(&["hostname"]).unwrap(), "one");
        assert_ne!(boot_id(one), boot_id(two));

        // Rules, processes, units and files are a machine's own.
        one.run(&["nft", "add", "table", "inet", "own"]).unwrap();
        assert_eq!(two.run(&["nft", "list", "ruleset"]).unwrap(), "");
        for system in [one, two] {
            system.run(&["systemd-run", "--quiet", "--unit", "sleeper", "sleep", "1000"]).unwrap();
        }
        one.write("/root/file", "kept").unwrap();
        assert!(!two.path("/root/file").exists());

        // A group is killed on one machine only.
        let pid = |system: &System| {
            let shown = system.run(&["systemctl", "show", "sleeper", "--property", "MainPID", "--value"]).unwrap();
            system.host_pid(shown.parse().unwrap()).unwrap()
        };
        let (first, second) = (pid(one), pid(two));
        assert!(fs::read_to_string(format!("/proc/{first}/cmdline")).unwrap().contains("sleep\x001000"));
        one.run(&["systemctl", "kill", "--signal", "KILL", "sleeper"]).unwrap();
        process::ended(first, SOON).await.unwrap();
        assert!(process::lives(second));

        // By name, by IPv4 and by IPv6, with and without each direction.
        let addresses = [two.name().to_owned(), two.machine().address(), two.machine().address_v6()];
        assert_eq!(addresses.each_ref().map(|address| reaches(one, address)), [true; 3]);
        for cut in [("one", "two"), ("two", "one")] {
            systems.network().cut(&[cut]).unwrap();
            assert_eq!(addresses.each_ref().map(|address| reaches(one, address)), [false; 3], "{cut:?}");
            assert!(reaches(one, "hub") && reaches(two, "hub"));
            systems.network().heal().unwrap();
        }
        systems.network().cut_both("one", CLIENTS).unwrap();
        assert!(!reaches(one, "hub") && reaches(one, "two"));
        systems.network().heal().unwrap();
    });
}

#[test]
fn what_a_machine_has_written_outlives_its_power() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let systems = Systems::new(&folder, Image::Empty, &["one", "two"]).unwrap();
        systems.boot().unwrap();
        let (one, two) = (systems.system("one").unwrap(), systems.system("two").unwrap());
        one.run(&["apt-get", "install", "--yes", "--quiet", "postgresql-client-17"]).unwrap();
        one.shell(GOODBYE).unwrap();
        let before = boot_id(one);
        one.switch_off().unwrap();
        systems.switch_on(&["one"]).unwrap();
        assert_ne!(boot_id(one), before);
        one.run(&["psql", "--version"]).unwrap();
        assert!(one.path("/root/goodbye").exists(), "everything is told to end");
        assert!(reaches(two, "one"));

        one.shell(&format!("rm /root/goodbye; {GOODBYE}")).unwrap();
        one.machine().power_off().unwrap();
        assert!(!reaches(two, "one"));
        one.machine().power_on().unwrap();
        one.booted().unwrap();
        assert!(!one.path("/root/goodbye").exists(), "a power cut tells nobody");
        assert!(reaches(two, "one"));
        assert_eq!(one.journal(None).unwrap().matches("Startup finished in").count(), 3, "of three boots");
    });
}

/// Set for a run of a test in a process that is going to be killed.
const STAYS: &str = "REGENT_TEST_STAYS";

/// Boots a machine, says which processes it is made of and where its files are, and stays.
#[expect(clippy::print_stdout, reason = "it is said to the test that started this one")]
fn stay() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let systems = Systems::new(&folder, Image::Empty, &["one"]).unwrap();
        systems.boot().unwrap();
        let processes = systems.system("one").unwrap().machine().processes().unwrap();
        println!("\nstays {} {processes:?}", folder.path().display());
        std::future::pending::<()>().await;
    });
}

#[test]
fn machines_end_with_a_test_that_is_killed() {
    if std::env::var_os(STAYS).is_some() {
        return stay();
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "machines::machines_end_with_a_test_that_is_killed", "--nocapture"]).env(STAYS, "1");
    let mut test = test.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said = lines.find_map(|line| line.strip_prefix("stays ").map(ToOwned::to_owned)).expect("a machine boots");
    let (folder, processes) = said.split_once(' ').unwrap();
    let processes: Vec<u32> =
        processes.trim_matches(['[', ']']).split(", ").map(|process| process.parse().unwrap()).collect();
    assert!(processes.len() > 3 && processes.iter().all(|process| process::lives(*process)), "{processes:?}");
    let id = test.id();
    let groups = || {
        let mut find = Command::new("find");
        find.args(["/sys/fs/cgroup", "-maxdepth", "2", "-name"]).arg(format!("regent-test-{id}-*"));
        String::from_utf8(find.output().unwrap().stdout).unwrap()
    };
    assert!(!groups().is_empty());
    test.kill().unwrap();
    test.wait().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gone = wait::until("the end of the machine", SOON, || async {
        let left: Vec<_> = processes.iter().filter(|process| process::lives(**process)).collect();
        ensure!(left.is_empty() && groups().is_empty(), "processes {left:?}, groups {:?}", groups());
        Ok(())
    });
    runtime.block_on(gone).unwrap();
    fs::remove_dir_all(Path::new(folder)).unwrap();
}
