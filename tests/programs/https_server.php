<?php
/*
 * An HTTPS server of PHP's streams, one connection after another. PHP makes an SSL_CTX for each.
 *
 * usage: https_server.php PORT CERT KEY tls1_2|tls1_3 [no_ticket] [verify_none]
 *
 * It asks for a client's certificate (PHP's default, though none is required) unless it is started with verify_none.
 * SIGTERM ends it where it stands, without a destructor.
 */

[, $port, $cert, $key, $version] = $argv;
$methods = ['tls1_2' => STREAM_CRYPTO_METHOD_TLSv1_2_SERVER, 'tls1_3' => STREAM_CRYPTO_METHOD_TLSv1_3_SERVER];
$context = stream_context_create(['ssl' => [
    'local_cert' => $cert,
    'local_pk' => $key,
    'crypto_method' => $methods[$version],
    'no_ticket' => in_array('no_ticket', $argv),
    'verify_peer' => !in_array('verify_none', $argv),
]]);
$flags = STREAM_SERVER_BIND | STREAM_SERVER_LISTEN;
$listener = stream_socket_server("tls://127.0.0.1:$port", $errno, $error, $flags, $context) or exit("$error\n");

while (true) {
    $connection = @stream_socket_accept($listener, -1);
    if ($connection === false) {
        continue; // not a TLS client: someone looked whether the port is open
    }
    stream_set_timeout($connection, 10);
    while (($line = fgets($connection)) !== false && rtrim($line) !== '');
    fwrite($connection, "HTTP/1.0 200 OK\r\n\r\nworker " . getmypid() . "\n");
    fclose($connection);
}
