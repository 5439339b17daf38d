// Package backup copies the records of a cluster to object storage and back.
//
// It promises:
//
//  1. A backup holds every record that was acknowledged before it began. The server sees
//     to it (GET /v1/admin/backup).
//  2. A backup is incremental: as long as the same node is asked and its volumes are the
//     same, it copies only the part of the log that the newest backup lacks.
//  3. A manifest is written after all chunks that it names, and is never changed. An
//     interrupted backup leaves chunks that the next one uses within half a day.
//  4. Nothing is believed: every chunk and every manifest carries its BLAKE3 hash in its
//     name, and Verify and Restore check all of them. A missing or damaged one is named.
//  5. Prune removes a chunk only if no kept manifest names it and it is older than any
//     backup that may be running. So several backups and prunings may run at once.
//  6. A restore adds records; it removes and overwrites nothing, and is idempotent.
//
// # Layout of the remote
//
//	chunks/INCARNATION/FROM-TO-BYTES-HASH     records (store.AppendRecord)
//	manifests/TIME-HASH.json                  a Manifest
//
// INCARNATION identifies the log of one node, FROM and TO are positions in it of 16 hex
// digits each, BYTES is the size of the object, HASH the BLAKE3-256 of its content in
// hex, TIME the time of the backup as 20060102T150405.000000Z. A chunk has about 32 MiB. A log
// that grows little between backups would leave many small chunks, so a run of them is
// copied again as one.
package backup
