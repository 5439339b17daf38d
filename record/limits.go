package record

// Limits of a record. Sizes are bytes of UTF-8.
const (
	MaxSubject    = 1024
	MaxPredicate  = 256
	MaxText       = 64 << 10 // an object's text
	MaxReference  = 1024     // an object's reference: it names a subject
	MaxMetadata   = 4 << 10  // keys and values of source_metadata together
	MaxSignatures = 64       // in one request; the set held for an id only grows
	MaxProject    = 63

	// MaxTimestamp is the last second of the year 9999. It keeps a timestamp
	// usable as a time everywhere, and it catches milliseconds.
	MaxTimestamp = 253402300799

	MaxRecordBytes = 1 << 20 // one assertion or vote on the wire
	MaxBatchItems  = 1000
	MaxBatchBytes  = 8 << 20
)
