//! The layers of `bench` and their arguments: all of it takes less than ten minutes, and the quick version
//! less than one.

/// The arguments of each layer, in the order in which they run.
pub(crate) fn all(quick: bool) -> Vec<Vec<String>> {
    let plan: &[&str] = if quick {
        &[
            "disk --seconds 0.5",
            "log --batch 1,256 --entry-bytes 64 --seconds 0.5",
            "core --batch 1,256 --entry-bytes 64 --seconds 0.3",
            "cluster --storage memory,wal --clients 1,256 --seconds 1.5 --open-loop 0.5",
            "path --seconds 0.5",
            "client --callers 1,256 --path stream,unary --operation propose --seconds 1",
            "http --clients 64 --seconds 1",
            "read --clients 1,256 --operation read-index --seconds 0.5",
            "failover --times 3",
            "restart --entries 200000 --part open,entries",
            "memory --proposals 200000 --every 100000",
            "overload --seconds 1.5",
        ]
    } else {
        &[
            "disk",
            "log",
            "core",
            // The subject of the goals, three times in turn.
            "cluster --storage memory,wal --clients 1,64,256,1024 --runs 3",
            "cluster --storage memory,wal --clients 1,64,256,1024 --seconds 1.5 --open-loop 0.5",
            "cluster --storage heed --seconds 1.5",
            "cluster --storage memory,wal,heed --entry-bytes 16,1024 --seconds 1.5",
            "cluster --processes three --storage memory,wal,heed --seconds 1.5",
            "path",
            "client --path stream,unary --seconds 1 --writes 1000000",
            "http",
            "read",
            "failover",
            "restart",
            "memory",
            "overload",
        ]
    };
    plan.iter().map(|layer| layer.split(' ').map(str::to_owned).collect()).collect()
}
