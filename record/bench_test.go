package record

import (
	"fmt"
	"testing"
)

func BenchmarkParseJSON(b *testing.B) {
	body := []byte(sampleJSON(b))
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAssertionJSON(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseCBOR(b *testing.B) {
	body := sampleAssertion().AppendCBOR(nil)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAssertionCBOR(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCanonical(b *testing.B) {
	c := sampleContent()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = c.AppendCanonical(buf[:0])
	}
}

func BenchmarkID(b *testing.B) {
	c := sampleContent()
	b.ReportAllocs()
	for b.Loop() {
		c.ID()
	}
}

func BenchmarkDecodeCanonical(b *testing.B) {
	c := sampleContent()
	body := c.AppendCanonical(nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeCanonical(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, n := range []int{1, 16, 64, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v := NewVerifier(64)
			items := signedItems(n, 8)
			b.ReportAllocs()
			for b.Loop() {
				v.Verify(items)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/signature")
		})
	}
}

func BenchmarkBatchItems(b *testing.B) {
	var seq []byte
	array := []byte{'['}
	for i := range 100 {
		if i > 0 {
			array = append(array, ',')
		}
		array = append(array, sampleJSON(b)...)
		seq = sampleAssertion().AppendCBOR(seq)
	}
	for mediaType, body := range map[string][]byte{MediaJSON: append(array, ']'), MediaCBORSeq: seq} {
		b.Run(mediaType, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range BatchItems(mediaType, body) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
