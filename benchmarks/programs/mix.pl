# Regular expressions, hashes, string building; the argument says how often.
use strict;
use warnings;
for my $round (1 .. $ARGV[0]) {
    my ($seed, $text) = ($round, "");
    for my $i (1 .. 15000) {
        $seed = ($seed * 16807) % 2147483647;
        $text .= "user$i\@host" . ($seed % 100) . ".org visited /page/" . ($seed % 977) . "?id=$seed;\n";
    }
    my (%hosts, %pages);
    my $count = 0;
    while ($text =~ /(\w+)@(\w+)\.org visited (\/[^?]*)\?id=(\d+);/g) {
        $hosts{$2}++;
        $pages{$3} += length($4);
        $count++;
    }
    (my $copy = $text) =~ s/(\d+)/<$1>/g;
    my @order = sort { $pages{$b} <=> $pages{$a} || $a cmp $b } keys %pages;
    print "$count ", scalar(keys %hosts), " $order[0] $pages{$order[0]} ", length($copy), " ",
        join(",", map { lc reverse } @order[0 .. 4]), "\n";
}
