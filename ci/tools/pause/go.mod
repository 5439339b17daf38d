module github.com/stemedb/stemedb/ci/tools/pause

go 1.26.0
