# The image of StemeDB contains only three static binaries and certificate
# authorities. `go run ./cmd/image stemedb` in ci/ builds the same image without
# a registry; a test compares the two.
#
#   docker build -t docker.io/stemedb/stemedb:dev .

FROM golang:1.26-bookworm AS build
ARG VERSION=dev
ENV CGO_ENABLED=0 GOFLAGS=-buildvcs=false
WORKDIR /src

# Modules come first: this layer changes only if a requirement changes.
COPY go.mod go.sum ./
COPY server/cmd/stemedb-k8s/go.mod server/cmd/stemedb-k8s/go.sum ./server/cmd/stemedb-k8s/
COPY server/cmd/stemedb-backup/go.mod server/cmd/stemedb-backup/go.sum ./server/cmd/stemedb-backup/
RUN go mod download && (cd server/cmd/stemedb-k8s && go mod download) && cd server/cmd/stemedb-backup && go mod download

COPY . .
RUN go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/stemedb ./server/cmd/stemedb
RUN cd server/cmd/stemedb-k8s && go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/stemedb-k8s .
RUN cd server/cmd/stemedb-backup && go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/stemedb-backup .
RUN printf 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' > /out/passwd \
 && printf 'nonroot:x:65532:\n' > /out/group

FROM scratch
ARG VERSION=dev
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/passwd /etc/passwd
COPY --from=build /out/group /etc/group
COPY --from=build /out/stemedb /usr/local/bin/stemedb
COPY --from=build /out/stemedb-k8s /usr/local/bin/stemedb-k8s
COPY --from=build /out/stemedb-backup /usr/local/bin/stemedb-backup
LABEL org.opencontainers.image.title="StemeDB" \
      org.opencontainers.image.description="A replicated store of signed, immutable assertions" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
EXPOSE 18180/tcp 18181/tcp 18182/tcp 18183/tcp 18183/udp
WORKDIR /
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/stemedb"]
CMD ["serve"]
