# Stand-ins for the bases of the Dockerfile, where no registry has them: see build.sh. In
# the context is debian.tar, which debootstrap made; goroot is this machine's Go.
FROM scratch AS debian
ADD debian.tar /
# As Docker's own, it keeps no packages.
RUN echo 'APT::Keep-Downloaded-Packages "false"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' >/etc/apt/apt.conf.d/docker-clean
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["bash"]

FROM debian AS go
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
COPY --from=goroot . /usr/local/go
ENV GOPATH=/go GOTOOLCHAIN=local PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

FROM go AS files
RUN mkdir -p /static/etc/ssl/certs /static/home && mkdir -m 1777 /static/tmp \
    && install -d -m 0700 -o 65532 -g 65532 /static/home/nonroot \
    && cp /etc/ssl/certs/ca-certificates.crt /static/etc/ssl/certs/ \
    && printf '%s\n' root:x:0:0:root:/root:/sbin/nologin nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin >/static/etc/passwd \
    && printf '%s\n' root:x:0: nonroot:x:65532: >/static/etc/group

FROM scratch AS static
COPY --from=files /static /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
WORKDIR /home/nonroot
USER 65532
