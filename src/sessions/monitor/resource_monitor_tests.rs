use super::*;

#[tokio::test]
async fn a_writer_is_found_and_a_frozen_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (quiet, busy) = (dir.path().join("quiet"), dir.path().join("busy"));
    std::fs::create_dir(&quiet).unwrap();
    std::fs::create_dir(&busy).unwrap();
    let warden = Warden::new(dir.path(), Launcher::at(dir.path()), Storage::default());
    let limits = Limits { disk_bytes: 8 << 20, ..Limits::default() };
    let (ids, nowhere) = ([Uuid::new_v4(), Uuid::new_v4()], CgroupPaths::default());
    let tenant = TenantId::default_tenant();
    let _quiet = warden.watch((&tenant, ids[0]), &quiet, &nowhere, &limits, true);
    let watch = warden.watch((&tenant, ids[1]), &busy, &nowhere, &limits, false);
    let (sender, mut found) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(warden.clone().run(move |id, finding| sender.send((id, finding)).is_ok()));
    std::fs::write(quiet.join("f"), vec![1; 16 << 20]).unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(found.try_recv().is_err(), "none is over");
    std::fs::write(busy.join("f"), vec![1; 16 << 20]).unwrap();
    // `tests/api_limits_reached.rs` measures how soon; here, only that it is reported.
    let (id, finding) = tokio::time::timeout(Duration::from_secs(20), found.recv()).await.unwrap().unwrap();
    assert_eq!(id, ids[1]);
    assert!(matches!(finding, Finding::Disk(used) if used.bytes >= 16 << 20), "{finding:?}");
    // Reported once, and again when the bound moved and is still exceeded.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(found.try_recv().is_err());
    watch.set_limits(&Limits { disk_bytes: 9 << 20, ..limits });
    tokio::time::timeout(Duration::from_secs(20), found.recv()).await.unwrap().unwrap();
    drop(watch);
    assert_eq!(warden.all().len(), 1);
    task.abort();
}

#[tokio::test]
async fn a_writer_of_a_tenant_that_stores_too_much_is_found_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::default();
    let warden = Warden::new(dir.path(), Launcher::at(dir.path()), storage.clone());
    let (limits, nowhere) = (Limits::default(), CgroupPaths::default());
    let [acme, other] = ["acme", "other"].map(|name| name.parse::<TenantId>().unwrap());
    storage.set_limit(&acme, Some(8 << 20));
    let make = |name: &str| {
        let root = dir.path().join(name);
        std::fs::create_dir(&root).unwrap();
        root
    };
    let (roots, ids) = (["writes", "reads", "others"].map(make), [1, 2, 3].map(Uuid::from_u128));
    let _watches = [(&acme, 0), (&acme, 1), (&other, 2)]
        .map(|(tenant, n)| warden.watch((tenant, ids[n]), &roots[n], &nowhere, &limits, false));
    let (sender, mut found) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(warden.clone().run(move |id, finding| sender.send((id, finding)).is_ok()));
    // Two sessions of one tenant store too much together: the last writer is reported, the idle one
    // is not.
    std::fs::write(roots[1].join("f"), vec![1; 9 << 20]).unwrap();
    let start = Instant::now();
    while storage.stored(&acme).files < 9 << 20 {
        assert!(start.elapsed() < Duration::from_secs(15), "not measured");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::write(roots[2].join("f"), vec![1; 9 << 20]).unwrap();
    let written = Instant::now();
    for n in 0..40 {
        std::fs::write(roots[0].join(n.to_string()), vec![1; 1 << 20]).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !found.is_empty() {
            break;
        }
    }
    let (id, finding) = tokio::time::timeout(Duration::from_secs(5), found.recv()).await.unwrap().unwrap();
    assert_eq!((id, finding), (ids[0], Finding::Storage), "after {:?}", written.elapsed());
    assert!(found.try_recv().is_err(), "no other session");
    task.abort();
}
