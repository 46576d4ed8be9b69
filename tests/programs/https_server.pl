# An HTTPS server of Perl's IO::Socket::SSL, one connection after another, on one SSL_CTX. Perl loads libssl with
# Net::SSLeay, behind itself.
#
# usage: https_server.pl PORT CERT KEY TLSv1_2|TLSv1_3 [no_ticket]
use strict;
use warnings;
use IO::Socket::SSL;
use Net::SSLeay;

my ($port, $cert, $key, $version, $option) = @ARGV;
my $listener = IO::Socket::SSL->new(
    LocalAddr => "127.0.0.1",
    LocalPort => $port,
    Listen => 64,
    ReuseAddr => 1,
    SSL_server => 1,
    SSL_cert_file => $cert,
    SSL_key_file => $key,
    SSL_version => $version,
    SSL_create_ctx_callback => sub {
        Net::SSLeay::CTX_set_options($_[0], Net::SSLeay::OP_NO_TICKET()) if $option;
    },
) or die "no listener: $!, $SSL_ERROR\n";

$SIG{TERM} = sub { exit 0 };
while (1) {
    my $connection = $listener->accept or next;    # not a TLS client: someone looked whether the port is open
    while (defined(my $line = <$connection>)) {
        last if $line =~ /^\r?\n$/;
    }
    print $connection "HTTP/1.0 200 OK\r\n\r\nworker $$\n";
    $connection->close;
}
