//! A power cut after every single step of a swap and of an undo, on real files.

use regent_common::ids::ClusterName;

use super::*;
use crate::engine::layout::{EngineUser, Shape};

static SHAPE: Shape = Shape { holds_data: |data| data.join("text").exists(), folders: &[] };

struct Copies {
    _folder: tempfile::TempDir,
    layout: Layout,
}

/// A member with an old copy in `data` and a whole new one in `incoming`.
fn copies() -> Copies {
    let folder = tempfile::tempdir().unwrap();
    let cluster = ClusterName::new("db").unwrap();
    let member = cluster.member(1);
    let user = EngineUser { name: None, uid: 0, gid: 0 };
    let layout = Layout::new(folder.path().to_path_buf(), user, cluster, member, &SHAPE);
    layout.claim().unwrap();
    layout.make_folders().unwrap();
    for (path, text) in [(layout.data(), "old"), (layout.incoming(), "new")] {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("text"), text).unwrap();
    }
    layout.write_ours(&layout.incoming_complete(), b"").unwrap();
    Copies { _folder: folder, layout }
}

fn text(layout: &Layout) -> String {
    fs::read_to_string(layout.data().join("text")).unwrap_or_default()
}

fn journal(undo: bool, was_dirty: bool) -> Journal {
    Journal { undo, kept: "data-1".to_owned(), had_data: true, was_dirty }
}

/// The steps of `put_in_place`, of which only the first `cut` are done.
fn forward_until(layout: &Layout, cut: usize) {
    let steps: [&dyn Fn(); 4] = [
        &|| journal(false, false).store(layout).unwrap(),
        &|| layout.rename(&layout.data(), &layout.kept().join("data-1")).unwrap(),
        &|| layout.rename(&layout.incoming(), &layout.data()).unwrap(),
        &|| layout.unmark(&layout.incoming_complete()).unwrap(),
    ];
    steps.iter().take(cut).for_each(|step| step());
}

#[test]
fn a_cut_on_the_way_forward_leaves_a_whole_copy_and_the_swap_can_go_on() {
    for (cut, settled) in [(0, "old"), (1, "old"), (2, "new"), (3, "new"), (4, "new")] {
        let copies = copies();
        let layout = &copies.layout;
        forward_until(layout, cut);
        settle(layout).unwrap();
        assert_eq!(text(layout), settled, "after {cut} steps");
        assert!(layout.has_data());
        put_in_place(layout, &journal(false, false)).unwrap();
        put_in_place(layout, &journal(false, false)).unwrap();
        assert_eq!(text(layout), "new", "after {cut} steps and the rest");
        assert_eq!(fs::read_to_string(layout.kept().join("data-1/text")).unwrap(), "old");
        assert!(!layout.incoming().exists() && !layout.incoming_complete().exists());
    }
}

#[test]
fn a_cut_on_the_way_back_ends_with_the_old_copy() {
    for was_dirty in [false, true] {
        for cut in 0..5 {
            let copies = copies();
            let layout = &copies.layout;
            forward_until(layout, 4);
            journal(true, was_dirty).store(layout).unwrap();
            let steps: [&dyn Fn(); 4] = [
                &|| {
                    if was_dirty {
                        layout.mark_dirty("").unwrap();
                    }
                },
                &|| layout.rename(&layout.data(), &layout.incoming()).unwrap(),
                &|| layout.rename(&layout.kept().join("data-1"), &layout.data()).unwrap(),
                &|| layout.remove_tree(&layout.incoming()).unwrap(),
            ];
            steps.iter().take(cut).for_each(|step| step());
            settle(layout).unwrap();
            settle(layout).unwrap();
            assert_eq!(text(layout), "old", "after {cut} steps");
            assert_eq!(layout.is_dirty(), was_dirty, "after {cut} steps");
            assert!(!layout.incoming().exists() && !layout.swap_journal().exists());
        }
    }
}

#[test]
fn an_unfinished_clone_is_never_put_in_place() {
    let copies = copies();
    let layout = &copies.layout;
    layout.unmark(&layout.incoming_complete()).unwrap();
    journal(false, false).store(layout).unwrap();
    layout.rename(&layout.data(), &layout.kept().join("data-1")).unwrap();
    settle(layout).unwrap();
    assert!(!layout.data().exists(), "a half copy became the data");
}

#[test]
fn a_new_clone_ends_a_swap_that_nobody_came_back_to() {
    let copies = copies();
    let layout = &copies.layout;
    forward_until(layout, 2);
    conclude(layout).unwrap();
    assert_eq!(text(layout), "new");
    assert!(!layout.swap_journal().exists() && layout.kept().join("data-1").exists());
    assert_eq!(layout.free_kept_name(), "data-2");
}

#[test]
fn nothing_is_removed_in_a_folder_that_is_not_ours() {
    let copies = copies();
    let layout = &copies.layout;
    layout.disclaim().unwrap();
    assert!(matches!(layout.remove_tree(&layout.data()), Err(DriverError::ForeignData { .. })));
    assert!(matches!(layout.claim(), Err(DriverError::ForeignData { .. })));
    assert_eq!(text(layout), "old");
}
