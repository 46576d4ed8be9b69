<?php
/*
 * An HTTPS client of PHP's streams: COUNT requests, a connection for each. Prints the answers.
 *
 * usage: https_client.php PORT CERT tls1_2|tls1_3 COUNT file_get_contents|session_stream
 *
 * file_get_contents() never offers a session. stream_socket_enable_crypto() offers that of an older stream, if it is
 * given one: here that of the connection before.
 */

[, $port, $cert, $version, $count, $how] = $argv;
$methods = ['tls1_2' => STREAM_CRYPTO_METHOD_TLSv1_2_CLIENT, 'tls1_3' => STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT];
$context = stream_context_create(['ssl' => [
    'cafile' => $cert,
    'crypto_method' => $methods[$version],
    'peer_name' => 'localhost',
]]);

$last = null;
for ($i = 0; $i < $count; $i++) {
    if ($how === 'file_get_contents') {
        $answer = file_get_contents("https://127.0.0.1:$port/", false, $context);
        $answer !== false or exit('no answer: ' . (error_get_last()['message'] ?? '') . "\n");
        echo $answer;
        continue;
    }
    $stream = stream_socket_client("tcp://127.0.0.1:$port", $errno, $error, 10, STREAM_CLIENT_CONNECT, $context);
    $stream && stream_socket_enable_crypto($stream, true, $methods[$version], $last) or exit("no connection\n");
    fwrite($stream, "GET / HTTP/1.0\r\n\r\n");
    echo stream_get_contents($stream);
    $last = $stream; // the one before ends only now, as the handshake took its session
}
